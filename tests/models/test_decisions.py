"""What a step decided by value is decided alike when it is made again, though rounding would have it otherwise."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from riverrun.models.base import Chunk, Control, StreamModel
from riverrun.models.super_resolution.scenes import SceneChunk, SceneSplitter
from riverrun.tests.models.table import ROWS, SAMPLED, Row, built, frames

TEXTS = [row for row in ROWS if row.name.startswith(("text", "Locret"))]
STEPS = 40


@pytest.fixture(scope="module", params=TEXTS, ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


@pytest.fixture(scope="module")
def model(row: Row, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return built(row, tmp_path_factory.mktemp("weights"))


def shaken(network: torch.nn.Module) -> torch.nn.Module:
    """A copy whose free choices are mostly others."""
    other, draw = copy.deepcopy(network), torch.Generator().manual_seed(2)
    for parameter in other.parameters():
        parameter.data += torch.randn(parameter.shape, generator=draw) * parameter.std()
    return other


@dataclasses.dataclass
class Made:
    """One numbered step: what it was given, made and decided."""

    inputs: list[Chunk]
    chunks: list[Chunk]
    decisions: Any


def live(row: Row, model: StreamModel, state: Any, steps: int) -> list[Made]:
    """Steps as a stage makes them: input where the model needs some, decisions read after each."""
    made = []
    for turn in range(steps):
        inputs = [] if model.ready(state) else row.feed(1, turn)
        made.append(step(model, state, inputs))
    return made


def step(model: StreamModel, state: Any, inputs: list[Chunk], forced: Any = None) -> Made:
    if forced is not None:
        model.force(state, json.loads(json.dumps(forced)))
    for chunk in inputs:
        model.push(state, chunk)
    chunks = model.step([state])[0] if model.ready(state) else []
    return Made(inputs, chunks, model.decisions(state))


def replay(model: StreamModel, state: Any, log: list[Made], *, is_forced: bool = True) -> list[Made]:
    return [step(model, state, made.inputs, made.decisions if is_forced else None) for made in log]


def counts(made: list[Made]) -> list[list[Chunk]]:
    return [[dataclasses.replace(chunk, data=len(chunk.data)) for chunk in each.chunks] for each in made]


def ids(made: list[Made]) -> list[list[int]]:
    return [[int(token) for chunk in each.chunks for token in chunk.data] for each in made]


def snapshot_after(row: Row, model: StreamModel, steps: int) -> tuple[Any, Any]:
    """(State, its snapshot) in the middle of an answer."""
    state = model.open(model.Params(**row.params), 6)
    live(row, model, state, steps)
    return state, state.snapshot()


def test_token_ids_are_forced(row: Row, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replayed on weights that would write another text."""
    sound = model.open(model.Params(**row.params), 6)
    live(row, model, sound, 7)
    snapshot = sound.snapshot()
    log = live(row, model, sound, STEPS)
    assert any(len(tokens) for tokens in ids(log))

    monkeypatch.setattr(model, "model", shaken(model.model))
    free = replay(model, model.restore(sound.params, snapshot), log, is_forced=False)
    assert ids(free) != ids(log), "the free choice is another"
    again = model.restore(sound.params, snapshot)
    forced = replay(model, again, log)
    assert counts(forced) == counts(log)
    assert ids(forced) == ids(log)
    assert [made.decisions for made in forced] == [made.decisions for made in log]
    assert again.stream.ids == sound.stream.ids
    assert again.stream.cache.cursor == sound.stream.cache.cursor
    live(row, model, again, 10)  # it goes on by itself


def test_an_undisturbed_replay_is_not_touched(row: Row, model: StreamModel) -> None:
    state, snapshot = snapshot_after(row, model, 9)
    log = live(row, model, state, STEPS)
    again = model.restore(state.params, snapshot)
    assert ids(replay(model, again, log)) == ids(log)
    left, right = state.snapshot(), again.snapshot()
    assert left.meta == right.meta
    assert all(np.array_equal(array, right.tensors[name]) for name, array in left.tensors.items())


def test_input_decides_nothing(row: Row, model: StreamModel) -> None:
    state = model.open(model.Params(**row.params), 6)
    live(row, model, state, 3)
    assert model.decisions(state) is not None
    model.push(state, row.feed(1, 9)[0])
    assert model.decisions(state) is None


def test_one_session_of_a_batch_is_forced(tmp_path: Path) -> None:
    row = next(row for row in TEXTS if row.params.get("temperature") == SAMPLED["temperature"])
    model = built(row, tmp_path)
    told, free, alone = (model.open(model.Params(**row.params), 6) for _ in range(3))
    for state in (told, free, alone):
        for chunk in row.feed(1, 0):
            model.push(state, chunk)
    model.force(told, {"ids": [7], "drawn": 3})
    chunks = model.step([told, free])
    assert chunks[0][0].data.tolist() == [7]
    assert model.decisions(told) == {"ids": [7], "drawn": 3}
    assert chunks[1][0].data.tolist() == model.step([alone])[0][0].data.tolist() != [7]
    told_next, free_next = model.step([told, free])
    assert told_next[0].first_frame == free_next[0].first_frame == 1, "only the next step was told"
    assert told.stream.ids[-2] == 7


def test_models_that_decide_nothing_say_so(tmp_path: Path) -> None:
    for number, row in enumerate(ROWS):
        if row in TEXTS or row.name in ("InfVSR", "InfVSR decoder", "InfiniteVGGT", "EasyControl"):
            continue
        folder = tmp_path / str(number)
        folder.mkdir()
        model = built(row, folder)
        assert model.decisions(model.open(model.Params(**row.params), 6)) is None


# -- scene cuts --------------------------------------------------------------------------------------------------

INFVSR = next(row for row in ROWS if row.name == "InfVSR")


@pytest.fixture
def cutter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StreamModel:
    """InfVSR without its network: chunks as long as they should be, of nothing."""

    def restored(states: list[Any], chunks: list[SceneChunk]) -> list[Chunk]:
        first, counts = chunks[0].frames[0], len(chunks[0].frames)
        return [Chunk("frames", np.zeros((counts, 1, 1, 3), np.uint8), first.pts, first.ticks, counts)]

    model = built(INFVSR, tmp_path)
    monkeypatch.setattr(model, "restored", restored)
    return model


def film(cuts: tuple[int, ...], count: int, batch: int) -> list[list[Chunk]]:
    """A video in inputs of `batch` frames, with a jump of brightness at `cuts`."""
    clip = frames("frames", (8, 12), count)(1, 0)[0]
    shown = clip.data.astype(int)
    for number, at in enumerate(cuts):
        shown[at:] += (-1) ** number * 70
    shown = shown.clip(0, 255).astype(np.uint8)
    return [[part(clip, shown, at, batch)] for at in range(0, count, batch)]


def part(clip: Chunk, shown: np.ndarray, at: int, count: int) -> Chunk:
    data = shown[at : at + count]
    pts = clip.pts + at * clip.frame_ticks
    return dataclasses.replace(clip, data=data, pts=pts, frames=len(data))


def watched(model: StreamModel, state: Any, film: list[list[Chunk]], log: list[Made] | None = None) -> list[Made]:
    """Inputs one a step, and further steps while it is ready; or the steps of `log` with the film's inputs."""
    made: list[Made] = []
    inputs = iter(film)
    for number in range(len(log) if log is not None else 1000):
        if log is not None:
            made.append(step(model, state, next(inputs) if log[number].inputs else [], log[number].decisions))
            continue
        given = [] if model.ready(state) else next(inputs, None)
        if given is None:
            break
        made.append(step(model, state, given))
    return made


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize(
    ("seen", "now"), [((20, 60), ()), ((), (20, 47)), ((20, 60), (22, 41, 60)), ((18, 20, 25, 44), (18, 31))]
)
def test_scene_cuts_are_forced(
    cutter: StreamModel, seen: tuple[int, ...], now: tuple[int, ...], start: int, batch: int
) -> None:
    """The frames that come again look otherwise; the chunks are those that went out."""
    model = cutter
    state = model.open(model.Params(), 0)
    sound, other = film(seen, 105, batch), film(now, 105, batch)
    watched(model, state, sound[:start])
    snapshot = state.snapshot()
    log = watched(model, state, sound[start : len(sound) - 2])
    free = watched(model, model.restore(state.params, snapshot), other[start : len(sound) - 2])
    again = model.restore(state.params, snapshot)
    forced = watched(model, again, other[start:], log)
    assert [len(each) for each in counts(forced)] == [len(each) for each in counts(log)]
    assert counts(forced) == counts(log)
    assert [made.decisions for made in forced] == [made.decisions for made in log]
    assert counts(free) != counts(log), "the free choice is another"
    goes_on, went_on = watched(model, again, other[-2:]), watched(model, state, sound[-2:])
    assert counts(goes_on) == counts(went_on)
    ends, ended = (model.finish(each) for each in (again, state))
    assert [(chunk.pts, chunk.frames) for chunk in ends] == [(chunk.pts, chunk.frames) for chunk in ended]
    assert sum(chunk.frames for made in (*log, *went_on) for chunk in made.chunks) <= 105


def test_a_forced_session_takes_controls_and_sizes_alike(tmp_path: Path) -> None:
    model = built(INFVSR, tmp_path)
    state = model.open(model.Params(), 0)
    snapshot = state.snapshot()
    clips = [*film((30,), 56, 8), *([dataclasses.replace(c, data=c.data[:, :4])] for (c,) in film((), 56, 8))]
    steady = [*film((), 56, 8), *([dataclasses.replace(c, data=c.data[:, :4])] for (c,) in film((25,), 56, 8))]

    def play(each: Any, film: list[list[Chunk]], log: list[Made] | None) -> list[Made]:
        made = []
        for number, inputs in enumerate(film):
            if log:
                model.force(each, log[number].decisions)
            for chunk in inputs:
                model.push(each, chunk)
            if number == 4:
                model.control(each, Control(1, "parameters", {"new_scene": True}))
            chunks = model.step([each])[0] if model.ready(each) else []
            made.append(Made(inputs, chunks, model.decisions(each)))
        return made

    log = play(state, clips, None)
    forced = play(model.restore(state.params, snapshot), steady, log)
    assert counts(forced) == counts(log)
    assert [made.decisions for made in forced] == [made.decisions for made in log]
    assert counts(play(model.restore(state.params, snapshot), steady, None)) != counts(log)


def test_a_flush_is_free_whatever_was_forced() -> None:
    splitter = SceneSplitter()
    splitter.force({"cuts": [], "filter": {}, "taken": [True, True], "seen": 0, "start": 9, "settled": 0})
    assert splitter.due == 0
    splitter.cut()
    assert splitter.forced is None


def test_without_scenes_nothing_is_decided(tmp_path: Path) -> None:
    model = built(INFVSR, tmp_path)
    assert model.decisions(model.open(model.Params(find_scenes=False), 0)) is None
