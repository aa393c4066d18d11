"""Sessions of a real model share steps: each gets what it would have got alone, and one that breaks, breaks alone."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from riverrun.actors.stage import StageWorker
from riverrun.graphs.stage import StepFailed
from riverrun.models.base import Chunk, Control, StreamModel
from riverrun.tests.actors.test_stage import Stepper
from riverrun.tests.models.table import ROWS, built

LONGLIVE = next(row for row in ROWS if row.name == "LongLive")
NAMES = "abc"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> StreamModel:
    return built(LONGLIVE, tmp_path_factory.mktemp("weights"))


@pytest.fixture
def stepper(model: StreamModel) -> Iterator[Callable[..., Stepper]]:
    made: list[Stepper] = []

    def make(max_batch: int | None = None) -> Stepper:
        made.append(Stepper(StageWorker(model, "one", 8, max_batch=max_batch)))
        return made[-1]

    yield make
    for one in made:
        while one.worker.run_once():
            pass
        one._threads.shutdown()


def prompt(revision: int) -> Control:
    assert LONGLIVE.control is not None
    return LONGLIVE.control(revision)


def opened(one: Stepper, name: str, ahead: int) -> int:
    """A session with a prompt and noise of its own, so many steps into its stream; the step due next."""
    one.open(name, seed=ord(name), prompt="x")
    for seq in range(ahead):
        controls = () if seq else (prompt(ord(name)),)
        one.step(name, seq, controls=controls, acked=seq - 1)
    return ahead


def shared(one: Stepper, names: str, due: dict[str, int], **controls: tuple[Control, ...]) -> dict[str, Chunk | str]:
    """One step for all at once: what each was given, or how it failed."""
    futures = {name: one.send(name, due[name], controls=controls.get(name, ())) for name in names}
    while one.worker.run_once():
        one.worker.check()
    found: dict[str, Chunk | str] = {}
    for name, future in futures.items():
        due[name] += 1
        error = future.exception(60)
        assert error is None or isinstance(error, StepFailed)
        found[name] = str(error) if error else future.result().chunks[0]
    return found


def alone(one: Stepper, due: dict[str, int], steps: int) -> dict[str, list[np.ndarray]]:
    made: dict[str, list[np.ndarray]] = {}
    for name in due:
        opened(one, name, due[name])
        steps_of = range(due[name], due[name] + steps)
        made[name] = [one.step(name, seq, acked=seq - 1).chunks[0].data for seq in steps_of]
    return made


def test_longlive_shares_steps_at_other_places_with_other_prompts(stepper: Callable[..., Stepper]) -> None:
    places = {"a": 1, "b": 3, "c": 5}
    wanted = alone(stepper(), places, steps=3)
    one = stepper()
    due = {name: opened(one, name, ahead) for name, ahead in places.items()}
    before = one.worker.health().steps
    for turn in range(3):
        for name, chunk in shared(one, NAMES, due).items():
            assert isinstance(chunk, Chunk)
            assert np.abs(chunk.data.astype(int) - wanted[name][turn]).max() <= 1
    assert one.worker.health().steps == before + 3


def test_max_batch_bounds_who_shares(stepper: Callable[..., Stepper]) -> None:
    one = stepper(max_batch=2)
    due = {name: opened(one, name, 1) for name in NAMES}
    before = one.worker.health().steps
    shared(one, NAMES, due)
    assert one.worker.health().steps == before + 2


@pytest.mark.parametrize("switches", [False, True], ids=["mid-stream", "as its prompt changes"])
def test_a_member_that_raises_ends_alone_and_the_others_are_bit_equal(
    stepper: Callable[..., Stepper], model: StreamModel, monkeypatch: pytest.MonkeyPatch, switches: bool
) -> None:
    places = {"a": 1, "b": 4, "c": 6}
    controls = {"c": (prompt(77),)} if switches else {}
    twins, one = stepper(), stepper()
    due, twin_due = ({name: opened(s, name, ahead) for name, ahead in places.items()} for s in (one, twins))
    emit = model._emit  # type: ignore[attr-defined]

    def failing(state, latents):
        if state.seed == ord("b"):
            raise RuntimeError("told to")
        return emit(state, latents)

    with monkeypatch.context() as patch:  # late in the step: all caches are written by then
        patch.setattr(model, "_emit", failing)
        found = shared(one, NAMES, due, **controls)
    assert found["b"] == "session b, step 4: RuntimeError: told to"
    for name in "ac":
        (twin,) = shared(twins, name, twin_due, **controls).values()
        (after,) = shared(one, name, due).values()
        (twin_after,) = shared(twins, name, twin_due).values()
        for chunk, wanted in ((found[name], twin), (after, twin_after)):
            assert isinstance(chunk, Chunk)
            assert isinstance(wanted, Chunk)
            assert np.array_equal(chunk.data, wanted.data)
    assert one.worker.health().sessions == 2


WRONG = {
    "one frame too few": (lambda data: data[1:], r"takes uint8 \[12, 32, 32, 3\], the model made uint8 \[11, 32, 32"),
    "another size": (
        lambda data: data[:, :16],
        r"takes uint8 \[12, 32, 32, 3\], the model made uint8 \[12, 16, 32, 3\]",
    ),
    "another type": (lambda data: data / 255, r"takes uint8 .*, the model made float64 \[12"),
    "no array": (lambda data: data.tolist(), r"takes uint8 .*, the model made something of type list"),
}


@pytest.mark.parametrize(("spoil", "line"), WRONG.values(), ids=WRONG)
def test_a_member_given_nonsense_ends_alone(
    stepper: Callable[..., Stepper],
    model: StreamModel,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[np.ndarray], object],
    line: str,
) -> None:
    one = stepper()
    due = {name: opened(one, name, 2) for name in NAMES}
    emit = model._emit  # type: ignore[attr-defined]

    def spoiling(state, latents):
        chunk = emit(state, latents)
        return dataclasses.replace(chunk, data=spoil(chunk.data)) if state.seed == ord("b") else chunk

    with monkeypatch.context() as patch:
        patch.setattr(model, "_emit", spoiling)
        found = shared(one, NAMES, due)
    assert re.search(rf"session b, step 2: Corrupt: port 'frames' {line}", str(found["b"])), found["b"]
    for name in "ac":
        assert isinstance(found[name], Chunk)
        assert isinstance(shared(one, name, due)[name], Chunk)
    assert one.worker.health().sessions == 2
