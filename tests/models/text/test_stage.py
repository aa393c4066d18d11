"""A language model as a stage, with every strategy, on tiny random weights: what goes beyond the table of models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from riverrun.models.base import BadRequest, Chunk, Control, Corrupt
from riverrun.models.text.causal_lm import CausalLM
from riverrun.models.text.lm_config import LMConfig
from riverrun.models.text.stage import LanguageModel, TextState
from riverrun.models.text.strategies import STRATEGIES, TextParams

CONFIG = {
    "model_type": "qwen3",
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
    "mask_token_id": 39,
    "eos_token_id": 38,
}
CAPACITY = 300
SMALL: dict[str, Any] = {"block": 6, "window": 5, "max_tokens": 40}
OPTIONS: list[dict[str, Any]] = [
    *({"strategy": name} for name in STRATEGIES),
    {"strategy": "jacobi", "blocks": 1, "pool": 0},
    {"strategy": "jacobi", "blocks": 3, "spawn": 0.0},
    {"strategy": "jacobi_sliding", "temperature": 0.8, "top_k": 9},
    {"strategy": "wedlm", "temperature": 0.8, "threshold": 3.0, "top_p": 0.9},
    {"strategy": "autoregressive", "temperature": 0.8},
]
NAMES = [" ".join(str(value) for value in options.values()) for options in OPTIONS]


def save(folder: Path, **values: Any) -> Path:
    torch.manual_seed(0)
    config = CONFIG | values
    model = CausalLM(LMConfig.read(config))
    for p in model.parameters():  # far enough apart that margins are wide
        p.data.mul_(3) if p.ndim > 1 else None
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    torch.set_num_threads(1)
    folder = save(tmp_path_factory.mktemp("lm"), eos_token_id=None)
    return LanguageModel(str(folder), capacity=CAPACITY, device="cpu")


def prompt(number: int, length: int = 12) -> Chunk:
    ids = np.random.default_rng(number).integers(0, 38, length)
    return Chunk("prompt", ids, pts=0, frame_ticks=3600, frames=length)


def start(model: LanguageModel, options: dict[str, Any], number: int = 1, seed: int = 5) -> TextState:
    state = model.open(TextParams(**(SMALL | options)), seed)
    assert not model.ready(state)
    model.push(state, prompt(number))
    assert model.ready(state)
    return state


def run(model: LanguageModel, state: TextState, steps: int = 10_000) -> list[int]:
    tokens: list[int] = []
    while steps and model.ready(state):
        tokens += [int(token) for chunk in model.step([state])[0] for token in chunk.data]
        steps -= 1
    return tokens


@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
def test_counts_and_clock(model: LanguageModel, options: dict[str, Any]) -> None:
    """Two turns of exactly the tokens asked for, numbered without gaps."""
    state = start(model, options)
    model.push(state, prompt(2))
    chunks = []
    while model.ready(state):
        chunks += model.step([state])[0]
    assert sum(chunk.frames for chunk in chunks) == 80
    at = 0
    for chunk in chunks:
        assert (chunk.port, chunk.first_frame, chunk.pts, chunk.frame_ticks) == ("tokens", at, at * 3600, 3600)
        assert chunk.data.dtype == np.int64
        assert chunk.frames == len(chunk.data) <= model.describe(state.params).chunk_frames
        at += chunk.frames
    assert len(state.stream.ids) == 12 + 40 + 12 + 40
    assert model.finish(state) == []


@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
def test_a_batch_equals_single_sessions(model: LanguageModel, options: dict[str, Any]) -> None:
    """Different prompts, seeds, lengths and, in one batch with plain decoding, strategies."""
    alone = [start(model, options, 1, 5), start(model, {}, 2, 6), start(model, options, 3, 7)]
    together = [start(model, options, 1, 5), start(model, {}, 2, 6), start(model, options, 3, 7)]
    run(model, alone[2], 3)
    run(model, together[2], 3)
    assert len({model.batch_key(state) for state in together}) == 1
    expected = [run(model, state, 6) for state in alone]
    got: list[list[int]] = [[], [], []]
    for _ in range(6):
        for tokens, chunks in zip(got, model.step(together), strict=True):
            tokens += [int(token) for chunk in chunks for token in chunk.data]
    assert got == expected
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a.stream.cache.k, b.stream.cache.k, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
def test_a_failed_step_leaves_the_text_as_it_was(
    model: LanguageModel, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the forward, or after it: the step is tried again as if nothing had been."""
    state, untouched = start(model, options), start(model, options)
    run(model, state, 4)
    run(model, untouched, 4)
    for place, name in ((model.model.model.layers[1], "forward"), (type(state.stream.decoder), "accept")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                model.step([state])
    assert run(model, state) == run(model, untouched)


@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
def test_memory_stays_as_described_to_the_end_of_the_room(model: LanguageModel, options: dict[str, Any]) -> None:
    """Twenty drafts and more; then the answer ends, and so does room for prompts."""
    state = start(model, {**options, "max_tokens": 10_000})
    bound = model.describe(state.params).retained_bytes
    pool = state.stream.cache.k.data_ptr()
    while model.ready(state):
        model.step([state])
        assert state.nbytes <= bound
    assert CAPACITY - state.stream.decoder.reach < len(state.stream.ids) <= CAPACITY
    assert state.stream.cache.k.data_ptr() == pool
    with pytest.raises(BadRequest, match="room for 0 more tokens of prompt, got 12"):
        model.push(state, prompt(2))


def test_a_stop_token_ends_the_answer_everywhere(tmp_path: Path, model: LanguageModel) -> None:
    plain = run(model, start(model, {}))
    stop = plain[9]
    folder = save(tmp_path, eos_token_id=stop)
    stopping = LanguageModel(str(folder), capacity=CAPACITY, device="cpu")
    for name in STRATEGIES[:-1]:
        state = start(stopping, {"strategy": name})
        assert run(stopping, state) == plain[: plain.index(stop) + 1]
        assert state.stream.cache.cursor == len(state.stream.ids) - 1


def test_prompts_in_words(tmp_path: Path, model: LanguageModel) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"a": 1, "river": 2, "runs": 3, "?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    worded = LanguageModel(str(save(tmp_path)), tokenizer=str(tmp_path), capacity=CAPACITY, device="cpu")
    state = worded.open(TextParams(**SMALL), 1)
    worded.control(state, Control(3, "prompt", "a river runs"))
    assert state.waiting == [[1, 2, 3]]
    assert worded.step([state])[0][0].revision == 3
    with pytest.raises(BadRequest, match="a text that isn't empty"):
        worded.control(state, Control(4, "prompt", "  "))
    with pytest.raises(BadRequest, match="takes no control"):
        model.control(state, Control(4, "prompt", "a"))


def test_snapshots_that_do_not_fit(model: LanguageModel) -> None:
    state = start(model, {"strategy": "jacobi"})
    run(model, state, 3)
    snapshot = state.snapshot()
    with pytest.raises(Corrupt, match="does not fit"):
        model.restore(TextParams(**(SMALL | {"strategy": "wedlm"})), snapshot)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"strategy": "beam"}, "strategy must be one of autoregressive, jacobi"),
        ({"strategy": "jacobi", "temperature": 0.5}, r"jacobi is greedy .*got a temperature of 0\.5"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"strategy": "jacobi", "block": 1}, "block must be >= 2, blocks >= 1"),
        ({"strategy": "jacobi_sliding", "block": 1}, "block must be at least 2"),
        ({"strategy": "jacobi", "spawn": 2.0}, r"spawn in 0\.\.1"),
        ({"strategy": "wedlm", "window": 0}, "window must be at least 1"),
        ({"strategy": "jacobi", "block": 400}, "drafts of 2401 tokens don't fit a session of 300"),
    ],
)
def test_wrong_params(model: LanguageModel, params: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        model.open(TextParams(**params), 0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.array([1, 40]), "token ids below 40"),
        (np.array([], np.int64), "one or more token ids"),
        (np.array([[1, 2]]), "one or more token ids"),
        (np.array([1.5]), "one or more token ids"),
        (np.zeros(400, np.int64), "room for 299 more tokens of prompt, got 400"),
    ],
)
def test_wrong_prompts(model: LanguageModel, data: np.ndarray, message: str) -> None:
    state = model.open(TextParams(), 0)
    with pytest.raises(BadRequest, match=message):
        model.push(state, Chunk("prompt", data, 0, 3600, len(data)))
    with pytest.raises(BadRequest, match="the input port is 'prompt'"):
        model.push(state, Chunk("frames", data, 0, 3600, len(data)))


def test_models_without_a_mask_refuse_wedlm(tmp_path: Path) -> None:
    plain = LanguageModel(str(save(tmp_path, mask_token_id=None)), capacity=CAPACITY, device="cpu")
    with pytest.raises(BadRequest, match="wedlm needs a model trained for it"):
        plain.open(TextParams(strategy="wedlm"), 0)
    with pytest.raises(BadRequest, match=r"capacity must be 1\.\.4096 tokens"):
        LanguageModel(str(tmp_path), capacity=5000)
