"""Locret as a stage and by its parts, on tiny random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from riverrun.kernels.retain import RetainingHeads
from riverrun.models.base import BadRequest, Chunk, Corrupt, Snapshot
from riverrun.models.text import packed
from riverrun.models.text.decoding import Autoregressive, Decoder, TextStream, decode, text_cache
from riverrun.models.text.jacobi import JacobiBlocks
from riverrun.models.text.jacobi_sliding import JacobiSliding
from riverrun.models.text.lm_config import LMConfig
from riverrun.models.text.locret import RetainingLM, Retention, read, read_all
from riverrun.models.text.locret_stage import LocretModel
from riverrun.models.text.locret_training import (
    SMOOTHNESS,
    head_loss,
    head_optimizer,
    importance_labels,
    overlap,
    train_step,
)
from riverrun.models.text.packed import Rows, feed
from riverrun.models.text.sampling import SeededChance
from riverrun.models.text.stage import TextState
from riverrun.models.text.strategies import STRATEGIES, TextParams
from riverrun.models.text.wedlm import WeDLM

CONFIG: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 160,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 200,
    "mask_token_id": 159,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"type": "longrope", "long_factor": [1.1, 1.5, 3.0, 4.0]}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 50}},
    "qwen2": {},
    "qwen3": {},
    "phi3": {"original_max_position_embeddings": 50, "rope_scaling": LONG},
}
BUDGETS: dict[str, Any] = {"budget": 12, "chunk": 9, "stabilisers": 4, "local": 5, "slack": 20}
LIMITS = Retention(**BUDGETS)
SMALL: dict[str, Any] = {"block": 5, "window": 5, "max_tokens": 30}


def build(family: str = "qwen3", width: int = 16) -> RetainingLM:
    torch.manual_seed(0)
    model = RetainingLM(LMConfig.read(CONFIG | FAMILIES[family], family), width).eval().requires_grad_(False)
    for p in model.parameters():  # far enough apart that margins are wide
        p.mul_(3) if p.ndim > 1 else None
    return model


def folder_of(model: RetainingLM, folder: Path) -> tuple[Path, Path]:
    """(base, heads), as they are published: in two files."""
    tensors = model.state_dict()
    heads = {key: tensor for key, tensor in tensors.items() if "fc" in key}
    save_file({key: t for key, t in tensors.items() if key not in heads}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "heads").mkdir(exist_ok=True)
    torch.save(heads, folder / "heads" / "heads.bin")
    return folder, folder / "heads" / "heads.bin"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LocretModel:
    torch.set_num_threads(1)
    base, heads = folder_of(build(), tmp_path_factory.mktemp("locret"))
    return LocretModel(str(base), str(heads), device="cpu", **BUDGETS)


def words(number: int, length: int) -> list[int]:
    """All different up to 150: equal tokens have equal scores at the first layer, which rounding tells apart."""
    random = np.random.default_rng(number)
    return np.concatenate([random.permutation(150) for _ in range(length // 150 + 1)])[:length].tolist()


def prompt(number: int, length: int = 50) -> Chunk:
    return Chunk("prompt", np.array(words(number, length)), pts=0, frame_ticks=3600, frames=length)


def start(model: LocretModel, number: int = 1, seed: int = 5, length: int = 50, **params: Any) -> TextState:
    state = model.open(TextParams(**(SMALL | params)), seed)
    assert not model.ready(state)
    model.push(state, prompt(number, length))
    assert model.ready(state)
    return state


def run(model: LocretModel, state: TextState, steps: int = 10_000) -> list[int]:
    tokens: list[int] = []
    while steps and model.ready(state):
        tokens += [int(token) for chunk in model.step([state])[0] for token in chunk.data]
        steps -= 1
    return tokens


def open_text(
    lm: RetainingLM, ids: list[int], limits: Retention = LIMITS, decoder: Decoder | None = None
) -> TextStream:
    decoder = decoder or Autoregressive()
    return TextStream.start(limits.cache(lm, decoder.reach), SeededChance(0), decoder, ids)


def write(lm: RetainingLM, stream: TextStream, count: int) -> list[int]:
    while len(stream.generated) < count:
        decode(lm, [stream])
    return stream.generated[:count]


# -- reading ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "pieces"),
    [
        (3, [(2, None)]),  # shorter than the local part: one plain pass
        (5, [(4, None)]),
        (6, [(1, True), (4, None)]),
        (14, [(9, True), (4, None)]),
        (15, [(9, False), (1, True), (4, None)]),
        (30, [(9, False), (9, False), (7, True), (4, None)]),
        (1, []),  # the one token is the first draft's
    ],
)
def test_a_prompt_is_read_in_chunks_and_its_end_is_local(length: int, pieces: list[tuple[int, bool | None]]) -> None:
    lm = build()
    stream = open_text(lm, words(0, length))
    seen = []
    while piece := LIMITS.next_piece(stream):
        seen.append((piece.count, piece.is_final if piece.prunes else None))
        read(lm, [stream], LIMITS)
        if piece.prunes:
            assert stream.cache.lengths == [min(12, stream.cache.cursor)] * 2
    assert seen == pieces
    with pytest.raises(ValueError, match="1 of 1 prompts are read already"):
        read(lm, [stream], LIMITS)


def test_no_position_lies_beyond_the_budget_and_what_follows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    highest = []
    places = Rows.places
    monkeypatch.setattr(Rows, "places", lambda rows: highest.append(max(places(rows))) or places(rows))
    lm = build()
    stream = open_text(lm, words(0, 400))
    read_all(lm, [stream], LIMITS)
    assert max(highest) == 12 + 9 - 1
    write(lm, stream, 8)
    assert max(highest) == highest[-1] == 12 + 5 + 8 - 2


def test_no_stabilisers() -> None:
    """Rows compete on their scores from the first chunk on."""
    lm, limits = build(), Retention(**(BUDGETS | {"stabilisers": 0}))
    stream = open_text(lm, words(0, 60), limits)
    read(lm, [stream], limits)
    read(lm, [stream], limits)
    free = stream.cache.held(0)  # type: ignore[attr-defined]
    whole = lm.scores(torch.tensor([words(0, 18)]))[0, 0]  # at layer 0 a score is the token's alone
    torch.testing.assert_close(free.sort(dim=0).values, whole.sort(dim=0).values[-12:])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"stabilisers": 13}, r"stabilisers must lie in 0\.\.12 \(the budget\), got 13"),
        ({"stabilisers": -1}, r"stabilisers must lie in 0\.\.12"),
        ({"budget": 0}, "budget must be at least one token"),
        ({"chunk": 0}, "chunk must be at least one token"),
        ({"local": 0}, "local must be at least one token"),
        ({"slack": 4}, "slack must hold the 5 local tokens, got 4"),
    ],
)
def test_budgets_that_can_not_hold_are_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        Retention(**(BUDGETS | wrong))


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_evicted_is_the_plain_model(family: str) -> None:
    lm, ids = build(family), words(4, 40)
    roomy = Retention(budget=100, chunk=7, stabilisers=3, local=5, slack=60)
    plain = TextStream.start(text_cache(lm, 100), SeededChance(0), Autoregressive(), ids)
    stream = open_text(lm, ids, roomy)
    read_all(lm, [stream], roomy)
    assert write(lm, stream, 30) == write(lm, plain, 30)


# -- decoding --------------------------------------------------------------------------------------------------

DRAFTING = {
    "block": lambda: JacobiBlocks(5, 1, pool=0),
    "sliding": lambda: JacobiSliding(160, 5),
    "blocks": lambda: JacobiBlocks(5, 3, spawn=0.0, pool=6),
}


@pytest.mark.parametrize("name", DRAFTING)
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_jacobi_after_reading_is_one_token_at_a_time(family: str, name: str) -> None:
    lm, ids = build(family), words(2, 70)
    plain, drafted = open_text(lm, ids), open_text(lm, ids, LIMITS, DRAFTING[name]())
    read_all(lm, [plain, drafted], LIMITS)
    expected = write(lm, plain, 15)
    assert write(lm, drafted, 15) == expected
    count = plain.cache.lengths[0]
    assert drafted.cache.lengths[0] >= count
    for layer in range(2):
        for part in ("k", "v"):
            a, b = (one.cache.slots(part, layer)[:, :count] for one in (plain, drafted))
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        held = [one.cache.held(layer)[:count] for one in (plain, drafted)]  # type: ignore[attr-defined]
        torch.testing.assert_close(*held, atol=1e-4, rtol=1e-4)


def test_masks_are_filled_over_pruned_rows_as_over_whole_ones() -> None:
    lm, ids = build(), words(3, 40)
    roomy = Retention(budget=100, chunk=7, stabilisers=3, local=5, slack=60)
    texts = []
    for cache in (text_cache(lm, 150), roomy.cache(lm, 20)):
        stream = TextStream.start(cache, SeededChance(0), WeDLM(159, 5, 0.4, 0.02, 0.0, 0, 1.0, frozenset()), ids)
        if cache.spec.keys == "raw":
            read_all(lm, [stream], roomy)
        texts.append(write(lm, stream, 30))
    assert texts[0] == texts[1]


# -- the stage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_counts_and_clock(model: LocretModel, strategy: str) -> None:
    state = start(model, strategy=strategy)
    model.push(state, prompt(2, 33))
    chunks: list[Chunk] = []
    empty = 0
    while model.ready(state):
        made = model.step([state])[0]
        empty += not chunks and not made
        chunks += made
    assert empty >= 6  # five chunks of the first prompt, and its local part
    assert sum(chunk.frames for chunk in chunks) == 60
    at = 0
    for chunk in chunks:
        assert (chunk.port, chunk.first_frame, chunk.pts) == ("tokens", at, at * 3600)
        assert chunk.frames == len(chunk.data) <= model.describe(state.params).chunk_frames
        at += chunk.frames
    assert model.finish(state) == []


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("steps", [2, 9, 40], ids=["reading", "writing", "later"])
def test_restored_stream_is_bit_equal(model: LocretModel, strategy: str, steps: int) -> None:
    state = start(model, strategy=strategy)
    model.push(state, prompt(2, 33))
    run(model, state, steps)
    model.push(state, prompt(3))
    snapshot = state.snapshot()
    twin = model.restore(state.params, Snapshot(json.loads(json.dumps(snapshot.meta)), snapshot.tensors))
    for poisoned in snapshot.tensors.values():
        poisoned.fill(99)  # the restored state must own its memory
    assert run(model, state) == run(model, twin)
    ours, theirs = state.snapshot(), twin.snapshot()
    assert ours.meta == theirs.meta
    assert all(np.array_equal(array, theirs.tensors[name]) for name, array in ours.tensors.items())


def test_memory_is_flat_over_many_windows(model: LocretModel) -> None:
    """Twenty turns, each of which replaces all rows more than once."""
    state = start(model)
    described = model.describe(state.params).retained_bytes
    cache = state.stream.cache.nbytes
    pool = state.stream.cache.k.data_ptr()
    held = []
    for turn in range(20):
        run(model, state)
        held.append(state.nbytes)
        assert state.stream.cache.lengths[0] <= LIMITS.budget + LIMITS.slack + 1
        model.push(state, prompt(turn + 10))
    assert state.stream.cache.nbytes == cache < described
    assert state.stream.cache.k.data_ptr() == pool
    assert max(held[3:]) == min(held[3:]) == held[-1]
    assert state.emitted == 20 * 30
    assert len(state.stream.ids) <= state.stream.cache.policy.capacity + 50 + 30 + 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_batch_equals_single_sessions(model: LocretModel, strategy: str) -> None:
    """Sessions that read and sessions that write share steps. Their answers end before rows are chosen from them."""
    kinds = [(1, 50, strategy), (2, 8, "autoregressive"), (3, 90, strategy), (1, 50, strategy)]
    alone = [run(model, start(model, n, length=length, strategy=kind, max_tokens=15)) for n, length, kind in kinds]
    together = [start(model, n, length=length, strategy=kind, max_tokens=15) for n, length, kind in kinds]
    assert len({model.batch_key(state) for state in together}) == 1
    texts: list[list[int]] = [[] for _ in together]
    while going := [i for i, state in enumerate(together) if model.ready(state)]:
        for i, chunks in zip(going, model.step([together[i] for i in going]), strict=True):
            texts[i] += [int(token) for chunk in chunks for token in chunk.data]
    assert texts == alone
    assert texts[0] == texts[3]
    assert torch.equal(together[0].stream.cache.k, together[3].stream.cache.k)


@pytest.mark.parametrize("before", [0, 1, 8, 20], ids=["first", "reading", "writing", "later"])
def test_a_failing_forward_leaves_every_text_as_it_was(
    model: LocretModel, before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [run(model, start(model, number, strategy="jacobi")) for number in (1, 2)]
    states = [start(model, number, strategy="jacobi") for number in (1, 2)]
    texts = [run(model, states[0], before), run(model, states[1], 8)]  # one may read while the other writes
    attention, calls = packed.attention, iter([True, True, False])

    def fail_in_the_second_layer(*args: Any, **options: Any) -> Any:
        if not next(calls, False):
            raise RuntimeError("no memory")
        return attention(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(packed, "attention", fail_in_the_second_layer)
        with pytest.raises(RuntimeError, match="no memory"):
            model.step(states)
    for text, state in zip(texts, states, strict=True):
        text += run(model, state)
    assert texts == expected


def test_a_failing_choice_ends_one_session(model: LocretModel, monkeypatch: pytest.MonkeyPatch) -> None:
    state, other = start(model, 1), start(model, 2)
    expected = run(model, start(model, 2))

    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(RetainingHeads, "select", fail)
        with pytest.raises(RuntimeError, match="no memory"):
            model.step([state])
    with pytest.raises(Corrupt, match=r"1 session\(s\) failed in an earlier step"):
        model.step([state, other])
    with pytest.raises(Corrupt, match="only an earlier snapshot can be restored"):
        state.snapshot()
    assert run(model, other) == expected


def test_wrong_input(model: LocretModel) -> None:
    state = model.open(TextParams(), 0)
    with pytest.raises(BadRequest, match="the input port is 'prompt'"):
        model.push(state, Chunk("frames", np.zeros(3, np.int64), 0, 1, 3))
    for ids in (np.array([160]), np.array([-1]), np.zeros((2, 2), np.int64), np.array([0.5]), np.array([], np.int64)):
        with pytest.raises(BadRequest, match="one or more token ids below 160"):
            model.push(state, Chunk("prompt", ids, 0, 1, 1))
    with pytest.raises(BadRequest, match="drafts of 385 tokens"):
        model.open(TextParams(strategy="jacobi", blocks=2, pool=4, block=64), 0)


def test_a_session_fits_the_models_positions(model: LocretModel, tmp_path: Path) -> None:
    base, heads = folder_of(build(), tmp_path)
    with pytest.raises(BadRequest, match=r"capacity must be 1\.\.200 tokens"):
        LocretModel(str(base), str(heads), device="cpu", **(BUDGETS | {"budget": 190}))
    near = LocretModel(str(base), str(heads), device="cpu", **(BUDGETS | {"budget": 179}))
    with pytest.raises(BadRequest, match="budget, slack and drafts need 205 positions, the model has 200"):
        near.open(TextParams(strategy="jacobi", block=5, blocks=1, pool=0), 0)
    with pytest.raises(BadRequest, match="unknown parameter 'sinks'"):
        LocretModel(str(base), str(heads), device="cpu", sinks=3)


def test_heads_come_from_their_own_file_or_with_the_model(tmp_path: Path) -> None:
    lm = build(width=24)
    base, heads = folder_of(lm, tmp_path)
    apart = LocretModel(str(base), str(heads), device="cpu", **BUDGETS)
    (tmp_path / "whole").mkdir()
    save_file(lm.state_dict(), tmp_path / "whole" / "model.safetensors")
    (tmp_path / "whole" / "config.json").write_text(json.dumps(CONFIG))
    whole = LocretModel(str(tmp_path / "whole"), device="cpu", **BUDGETS)
    assert run(apart, start(apart)) == run(whole, start(whole))
    with pytest.raises(BadRequest, match="holds no retaining heads"):
        LocretModel(str(base), device="cpu", **BUDGETS)
    torch.save({"model.layers.0.self_attn.fc1.weight": torch.zeros(16, 64)}, heads)
    with pytest.raises(BadRequest, match=r"don't fit RetainingLM: 3 missing: model.layers.0.self_attn.fc2.weight"):
        LocretModel(str(base), str(heads), device="cpu", **BUDGETS)


def test_a_snapshot_of_another_budget_is_corrupt(model: LocretModel, tmp_path: Path) -> None:
    base, heads = folder_of(build(), tmp_path)
    state = start(model)
    run(model, state, 3)
    other = LocretModel(str(base), str(heads), device="cpu", **(BUDGETS | {"stabilisers": 3}))
    with pytest.raises(Corrupt, match=r"stabilisers=4.*stabilisers=3"):
        other.restore(state.params, state.snapshot())


# -- training --------------------------------------------------------------------------------------------------


def test_labels_are_the_largest_logits_of_the_answer() -> None:
    """Against a plain pass that writes them out; keys turned as they should be."""
    lm, ids, prefix = build(), torch.tensor(words(5, 26)), 20
    labels = importance_labels(lm, ids, prefix, chunk=6)
    assert labels.shape == (2, 1, 2, prefix)
    torch.testing.assert_close(labels, importance_labels(lm, ids, prefix, chunk=100))
    cache = text_cache(lm, 26)  # rotated keys
    feed(lm, [Rows(cache, ids.tolist(), logits=0)])
    x = lm.model.embed_tokens(ids)[None]
    attn = lm.model.layers[0].self_attn
    q = attn.q_norm(attn.q_proj(lm.model.layers[0].input_layernorm(x)).unflatten(-1, (-1, 8)))
    q = packed.rotate_halves(q, lm.config.rotary.turn(torch.arange(26)))[0, prefix:]  # (T, H, D)
    keys = cache.slots("k", 0)[0, :prefix].repeat_interleave(2, dim=1)
    logits = torch.einsum("thd,phd->htp", q, keys) / 8**0.5
    torch.testing.assert_close(labels[0, 0], logits.amax(1).unflatten(0, (2, 2)).amax(1), atol=1e-5, rtol=1e-5)
    for wrong in (0, 26):
        with pytest.raises(BadRequest, match="prompt and answer need a token each"):
            importance_labels(lm, ids, wrong)


def test_losses_and_overlap_on_numbers() -> None:
    scores = torch.tensor([0.0, 2.0, 4.0, 4.0]).view(1, 1, 4, 1)
    labels = torch.tensor([0.5, 2.0, 7.0, 4.0]).view(1, 1, 1, 4)
    loss = head_loss(scores, labels)
    assert float(loss.regression) == pytest.approx((0.125 + 0 + 2.5 + 0) / 4)
    assert float(loss.smooth) == pytest.approx((4 + 4 + 0) / 3)
    assert float(loss.total) == pytest.approx(2.625 / 4 + SMOOTHNESS * 8 / 3)
    assert overlap(scores, labels, share=0.5) == 1.0
    assert overlap(scores, -labels, share=0.5) == 0.0


def test_heads_learn_and_nothing_else_moves() -> None:
    lm, ids = build(), torch.tensor(words(6, 40))
    labels = importance_labels(lm, ids, 32)
    before = {name: p.clone() for name, p in lm.named_parameters()}
    optimizer = head_optimizer(lm)
    losses = [float(train_step(lm, optimizer, ids[:32], labels).total.detach()) for _ in range(80)]
    assert losses[-1] < 0.7 * losses[0]
    moved = {name for name, p in lm.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if ".self_attn.fc" in name}
