"""Replays of Jacobi Forcing's decoding loops and training losses (jacobi_forcing.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from riverrun.models.text.decoding import TextStream, decode, text_cache
from riverrun.models.text.jacobi import JacobiBlocks
from riverrun.models.text.jacobi_sliding import JacobiSliding
from riverrun.models.text.jacobi_training import (
    PackedPairs,
    jacobi_losses,
    nearest_state,
    noise_schedule,
    packed_logits,
)
from riverrun.models.text.packed import Rows
from riverrun.models.text.sampling import SeededChance
from riverrun.tests.parity.cases import Case
from riverrun.tests.parity.language import filled, language_model


@dataclass
class Told:
    """A chance whose draws the fixture gives, each kind in its own order."""

    picks: list[list[int]]
    uniforms: list[float] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    drawn: int = 0

    def pick(self, pool: Sequence[int], count: int) -> list[int]:
        if not count:
            return []
        told = self.picks.pop(0)
        assert len(told) == count
        assert set(told) <= set(pool)
        return told

    def uniform(self) -> float:
        return self.uniforms.pop(0)

    def sample(self, probabilities: Tensor) -> int:
        token = self.samples.pop(0)
        assert probabilities[token] > 0
        return token


class WatchedBlock(JacobiBlocks):
    """Compares every forward with the fixture's: what was fed, where, and what came out."""

    case: Case
    forwards = 0

    def propose(self, stream: TextStream) -> Rows:
        rows = super().propose(stream)
        case, number = self.case, self.forwards
        length, first = int(case["out/forward_len"][number]), int(case["out/forward_first_pos"][number])
        fed = case["out/forward_ids"][number][:length].tolist()
        assert first + length == stream.cache.cursor + len(rows.ids)
        assert fed[-len(rows.ids) :] == list(rows.ids)  # the prompt's forward is fed in two parts
        return rows

    def accept(self, stream: TextStream, logits: Tensor) -> None:
        length = int(self.case["out/forward_len"][self.forwards])
        expected = self.case["out/forward_argmax"][self.forwards][:length]
        assert logits.argmax(-1).tolist() == expected[-len(logits) :].tolist()
        self.forwards += 1
        super().accept(stream, logits)


def greedy(case: Case) -> None:
    meta = case.meta
    model = language_model(case)
    block, eos = meta["n_token_seq_len"], meta["eos_token_id"]
    prompt, drafts = case["in/prompt_ids"].tolist(), case["in/drafts"].tolist()
    decoder = WatchedBlock(block, 1, pool=0, stop_ids=frozenset() if eos is None else frozenset([eos]))
    decoder.case = case
    # The second draft is what the model made of the first; later ones begin with the token already known.
    told = Told([drafts[0], *(draft[1:] for draft in drafts[2:])])
    total = len(prompt) + len(case["out/generated_ids"])
    stream = TextStream.start(text_cache(model, total + 2 * block), told, decoder, prompt)
    while not stream.is_ended and stream.cache.cursor < total:
        decode(model, [stream])
    expected = case["out/generated_ids"].tolist()
    assert stream.generated[: len(expected)] == expected
    assert stream.generated[: len(expected)] == case["out/ar_ids"].tolist()[: len(expected)]
    assert case["out/forward_batch"].eq(1).all()  # so is ours: one draft at a time
    # Officially a first token of a block that ends the text takes a forward of its own to be noticed.
    known = stream.is_ended and meta["calls"][-1]["accepted"] == 1
    assert decoder.forwards == meta["prefill_forwards"] + meta["decode_forwards"] - known
    compare_cache(case, stream)


def compare_cache(case: Case, stream: TextStream) -> None:
    """The official loop cuts too much off its cache when a text ends (pitfall P2): what it kept must be right."""
    for layer in range(stream.cache.spec.layers):
        for part in ("k", "v"):
            expected = case[f"out/final_{part}.{layer}"][:1]  # (1, heads, T, head_dim)
            count = min(expected.shape[2], stream.cache.cursor)
            got = filled(stream.cache, part, layer, count).transpose(0, 1)[None]
            torch.testing.assert_close(got, expected[:, :, :count], atol=1e-4, rtol=1e-4)


@dataclass
class Watch:
    """Compares the forwards of a batch with the fixture's, in order."""

    case: Case
    number: int = 0

    def check(self, sequence: int, stream: TextStream, draft: list[int], predicted: list[int]) -> None:
        expected = self.case.meta["forwards"][self.number]
        assert (sequence, len(stream.ids)) == (expected["seq"], expected["S"])
        assert draft == expected["draft"]
        assert predicted == expected["argmax"]
        self.number += 1


class WatchedSliding(JacobiSliding):
    watch: Watch
    sequence: int

    def accept(self, stream: TextStream, logits: Tensor) -> None:
        predicted = logits.argmax(-1).tolist()
        guesses = stream.work.guesses
        if guesses is None:
            expected = self.watch.case[f"out/prefill_draft.{self.sequence}"].tolist()
            assert predicted[: self.block] == expected
        else:
            self.watch.check(self.sequence, stream, stream.ids[-1:] + guesses, predicted[:-1])
        super().accept(stream, logits)


def engine(case: Case) -> None:
    """engine_greedy, engine_sample: sequences of a batch share one order of draws."""
    meta = case.meta
    model = language_model(case)
    prompts = [case[name].tolist() for name in case.names() if name.startswith("in/prompt_ids.")]
    eos = meta["eos_token_id"]
    pads = [[token for token in row if token >= 0] for row in case["in/random_pads"].tolist()]
    pads = [row for row in pads if row]
    firsts = [case[f"in/prefill_random_draft.{i}"].tolist() for i in range(len(prompts))]
    sampled = meta["temperature"] > 0
    told = Told(pads if sampled else firsts + pads, case["in/uniforms"].tolist(), case["in/multinomial_draws"].tolist())
    watch = Watch(case)
    streams = []
    for number, prompt in enumerate(prompts):
        decoder = WatchedSliding(
            meta["vocab_size"], meta["block_len"], frozenset() if eos is None else frozenset([eos]), meta["temperature"]
        )
        decoder.watch, decoder.sequence = watch, number
        cache = text_cache(model, len(prompt) + meta["max_tokens"] + 3 * meta["block_len"])
        streams.append(TextStream.start(cache, told, decoder, prompt))
    while going := [s for s in streams if not s.is_ended and len(s.generated) < meta["max_tokens"]]:
        decode(model, going)
    for number, stream in enumerate(streams):
        expected = case[f"out/generated_ids.{number}"].tolist()
        assert stream.generated == expected
        if not sampled:
            assert expected == case[f"out/ar_ids.{number}"].tolist()[: len(expected)]
    assert watch.number == len(meta["forwards"])
    assert not told.uniforms
    assert not told.samples


def multiblock(case: Case) -> None:
    """The text only: officially a second block's work is thrown away, so the forwards are other ones."""
    meta = case.meta
    options = meta["multiblock"]
    model = language_model(case)
    block, eos = meta["n_token_seq_len"], meta["eos_token_id"]
    stops = frozenset() if eos is None else frozenset([eos])
    decoder = JacobiBlocks(block, options["K"], options["r"], options["n_gram_pool_size"], stops)
    prompt, expected = case["in/prompt_ids"].tolist(), case["out/generated_ids"].tolist()
    cache = text_cache(model, len(prompt) + len(expected) + block + decoder.reach)
    stream = TextStream.start(cache, SeededChance(meta["driver_seed"]), decoder, prompt)
    forwards = 0
    while not stream.is_ended and len(stream.generated) < len(expected):
        decode(model, [stream])
        forwards += 1
    assert stream.generated[: len(expected)] == expected
    common = min(len(expected), len(case["out/ar_ids"]))
    assert stream.generated[:common] == case["out/ar_ids"].tolist()[:common]
    assert forwards <= len(expected) + 1
    compare_cache(case, stream)


@torch.enable_grad()
def train_loss(case: Case) -> None:
    meta = case.meta
    model = language_model(case)
    raw = PackedPairs(case["in/packed_ids"], meta["prompt_len"], meta["block_len"])
    packed = raw.padded(meta["eos"], meta["pad"])
    assert packed.pairs == meta["num_pairs"]
    assert torch.equal(packed.ids, case["out/input_ids_after_eos_padding"])
    assert torch.equal(packed.positions(), case["out/position_ids"])
    assert torch.equal(packed.mask(), case["out/attention_mask"].bool())
    logits = packed_logits(model, packed)
    case.close(logits, "out/logits")
    losses = jacobi_losses(logits, packed, meta["eos"], meta["pad"])
    case.close(losses.ar.reshape(1), "out/loss_ar_times10")
    case.close(losses.consistency.reshape(1), "out/loss_consistency")
    case.close(losses.total.reshape(1), "out/loss_total")
    losses.total.backward()
    norms = {name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None}
    expected = meta.get("grad_norms", {})
    assert norms.keys() >= expected.keys()
    for name, norm in expected.items():
        assert norms[name] == pytest.approx(norm, rel=1e-3), name


def pack_progressive(case: Case) -> None:
    meta = case.meta
    schedule = noise_schedule(meta["window"], meta["min_ratio"], meta["max_ratio"])
    for item in meta["items"]:
        trajectory = item["trajectory"]
        chosen = nearest_state(trajectory, schedule[item["itr"] % len(schedule)])
        assert chosen == item["k_j"]
        pair = (trajectory[chosen], trajectory[-1])
        assert PackedPairs.of([0], [pair]).ids[1:].tolist() == item["pair"]


REPLAYS = {
    ("jacobi_forcing", "train_loss"): train_loss,
    ("jacobi_forcing", "pack_progressive"): pack_progressive,
    ("jacobi_forcing", "multiblock"): multiblock,
    ("jacobi_forcing", "greedy"): greedy,
    ("jacobi_forcing", "engine_greedy"): engine,
    ("jacobi_forcing", "engine_sample"): engine,
}
