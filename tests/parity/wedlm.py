"""Replays of WeDLM's decoders, sampler and training losses (wedlm.md)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from riverrun.models.text.decoding import TextStream, decode, text_cache
from riverrun.models.text.packed import Rows
from riverrun.models.text.sampling import SeededChance, entropy, filtered
from riverrun.models.text.wedlm import WeDLM, choose, generate_blocks, uncertainty
from riverrun.models.text.wedlm_training import MaskedBatch, MaskedSample, batch_logits, wedlm_losses
from riverrun.tests.parity.cases import Case
from riverrun.tests.parity.language import filled, language_model


@dataclass
class Script:
    """What the fixture says of each step. number: steps done; chosen: selections compared in this one."""

    case: Case
    number: int = 0
    chosen: int = 0

    @property
    def step(self) -> dict[str, Any]:
        return self.case.meta["steps"][self.number]

    def place(self, sequence: int) -> tuple[int, slice]:
        """(index of a session in this step, its rows among the step's)."""
        place = [one["seq"] for one in self.step["before"]].index(sequence)
        start = sum(self.step["sizes"][:place])
        return place, slice(start, start + self.step["sizes"][place])

    def next_selection(self) -> dict[str, Any]:
        selections = [one for one in self.step["sel"] if one is not None]  # of the sessions that go on
        self.chosen += 1
        return selections[self.chosen - 1]

    def advance(self) -> None:
        self.number, self.chosen = self.number + 1, 0


class WatchedWindow(WeDLM):
    """Compares its session's part of every step with the fixture's."""

    script: Script
    sequence: int
    rows: Rows

    def propose(self, stream: TextStream) -> Rows:
        case, (place, own) = self.script.case, self.script.place(self.sequence)
        before, window, start = self.script.step["before"][place], stream.work.window, stream.cache.cursor
        assert [self.mask_id if token is None else token for token in window] == before["window"]
        assert [int(token is None) for token in window] == before["mask"]
        assert start == before["cache_len"]
        self.rows = super().propose(stream)
        number, page = self.script.number, case.meta["kv_block_size"]
        assert list(self.rows.ids) == case["out/step_input_ids"][number][own].tolist()
        assert list(self.rows.positions or ()) == case["out/step_positions"][number][own].tolist()
        slots = [slot % page for slot in case["out/step_slots"][number][own].tolist()]
        assert slots == [(start + row) % page for row in range(len(self.rows.ids))]
        return dataclasses.replace(self.rows, logits=None)

    def accept(self, stream: TextStream, logits: Tensor) -> None:
        case, (place, own) = self.script.case, self.script.place(self.sequence)
        if (name := f"out/logits_step.{self.script.number}") in case:
            torch.testing.assert_close(logits, case[name][own], atol=1e-4, rtol=1e-4)
        length, before = len(stream.ids), list(stream.work.window)
        of_masks = logits[len(logits) - (self.rows.logits or 0) :]
        super().accept(stream, of_masks)
        committed = self.script.step["committed"][place]
        assert stream.ids[length:][: len(committed)] == committed
        if not stream.is_ended and len(stream.generated) < case.meta["max_tokens"]:
            self.compare_choice(of_masks, before[len(committed) :], stream.work.window)

    def compare_choice(self, logits: Tensor, before: list[int | None], now: list[int | None]) -> None:
        expected = self.script.next_selection()
        masks = [place for place, token in enumerate(before) if token is None]
        assert masks == expected["mask_window_idx"]
        torch.testing.assert_close(entropy(logits), torch.tensor(expected["entropy"]), atol=1e-4, rtol=1e-4)
        assert logits.argmax(-1).tolist() == expected["argmax"]
        assert [i for i, place in enumerate(masks) if now[place] is not None] == expected["fill"]
        assert [now[masks[i]] for i in expected["fill"]] == expected["tokens"]


def engine(case: Case) -> None:
    """A batch of sessions, each with its own window, stops and length."""
    meta = case.meta
    model = language_model(case)
    prompts = [case[name].tolist() for name in case.names() if name.startswith("in/prompt_ids.")]
    script = Script(case)
    streams = []
    for sequence, prompt in enumerate(prompts):
        decoder = WatchedWindow(
            meta["mask_token_id"],
            meta["window_size"],
            meta["entropy_threshold"],
            meta["pos_penalty_factor"],
            meta["temperature"],
            stop_ids=frozenset(meta["stop_token_ids"][sequence]),
        )
        decoder.script, decoder.sequence = script, sequence
        cache = text_cache(model, len(prompt) + meta["max_tokens"] + 4 * meta["window_size"])
        streams.append(TextStream.start(cache, SeededChance(0), decoder, prompt))
    while going := [s for s in streams if not s.is_ended and len(s.generated) < meta["max_tokens"]]:
        decode(model, going)
        script.advance()
    assert script.number == meta["decode_forwards"] == len(meta["steps"])
    for sequence, stream in enumerate(streams):
        assert stream.generated[: meta["max_tokens"]] == case[f"out/generated_ids.{sequence}"].tolist()
        compare_cache(case, sequence, stream)


def compare_cache(case: Case, sequence: int, stream: TextStream) -> None:
    for layer in range(stream.cache.spec.layers):
        for part in ("k", "v"):
            name = f"out/last_cache_{part}.{sequence}.{layer}"
            if name in case:
                case.close(filled(stream.cache, part, layer, len(case[name])), name)


def hf_block(case: Case) -> None:
    meta = case.meta
    model = language_model(case)
    ids, steps = generate_blocks(
        model,
        case["in/prompt_ids"].tolist(),
        meta["max_new_tokens"],
        mask_id=meta["mask_token_id"],
        block=meta["block_size"],
        confidence=meta["confidence_threshold"],
        temperature=meta["temperature"],
    )
    assert ids == case["out/sequences"].tolist()
    stats = meta["stats"]
    assert len(steps) == stats["total_steps"]
    blocks = [block for one in stats["per_sample_stats"] for block in one["blocks"]]
    assert steps == [count for block in blocks for count in block["tokens_per_step"]]


def sampler(case: Case) -> None:
    logits, places = case["in/logits"], case.meta["remaining_mask_indices"]
    case.close(entropy(logits), "out/entropy")
    for name in case.tensors("out/filtered_"):
        top_k, top_p = (float(part[4:]) for part in name.split("_"))  # "topk5_topp0.8"
        case.close(filtered(logits, int(top_k), top_p), f"out/filtered_{name}")
    for name, expected in case.meta["selection"].items():
        values = dict(part.split("=") for part in name.split(","))
        threshold = None if values["tau"] == "None" else float(values["tau"])
        assert choose(uncertainty(logits, places, float(values["lam"])), threshold) == expected


def samples(case: Case) -> list[MaskedSample]:
    """The fixture's draws, put back into the samples' own order."""
    bounds = case["in/cum_seqlens"].tolist()
    found, at = [], 0
    for start, stop in pairwise(bounds):
        length = stop - start
        own = slice(at + length, at + 2 * length)  # the masked stream follows the clean one
        places = case["out/logical_positions"][own]
        masked, ratio = torch.zeros(length, dtype=torch.bool), torch.zeros(length)
        masked[places], ratio[places] = case["out/masked"][own].bool(), case["out/p_mask"][own]
        found.append(MaskedSample(case["in/ids"][start:stop], case["in/labels"][start:stop], masked, ratio))
        at += 2 * length
    return found


def train_batch(case: Case) -> None:
    meta = case.meta
    model = language_model(case)
    batch = MaskedBatch.of(samples(case), meta["block_size"], meta["mask_token_id"])
    assert torch.equal(batch.ids, case["out/packed_input_ids"])
    assert torch.equal(batch.targets, case["out/original_ids"])
    assert torch.equal(batch.positions, case["out/logical_positions"])
    assert torch.equal(batch.masked, case["out/masked"].bool())
    assert torch.equal(batch.ratio, case["out/p_mask"])
    assert torch.equal(batch.mask(), case["out/attn_mask"].bool())
    logits = batch_logits(model, batch)
    case.close(logits, "out/logits")
    losses = wedlm_losses(logits, batch)
    case.close(losses.masked.reshape(1), "out/loss_mlm_weighted")
    case.close(losses.plain.reshape(1), "out/loss_mlm_uniform")
    case.close(losses.ar.reshape(1), "out/loss_ar")
    case.close(losses.total.reshape(1), "out/loss_total")


REPLAYS = {
    ("wedlm", "train_batch"): train_batch,
    ("wedlm", "engine"): engine,
    ("wedlm", "hf_block"): hf_block,
    ("wedlm", "sampler"): sampler,
}
