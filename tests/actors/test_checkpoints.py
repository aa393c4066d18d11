"""What a State may go on with, and where it finds its memory when it moves."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from grpc import StatusCode

from riverrun.actors.checkpoints import Checkpoints
from riverrun.actors.errors import SessionFailed, meaning
from riverrun.actors.loading import engine_of
from riverrun.actors.stage import StageWorker
from riverrun.configs import ActorConfig, ModelConfig
from riverrun.graphs.stage import Epoch, Mismatch, OpenRequest, RestoreRequest, StepRequest, UnknownSession
from riverrun.models.base import Corrupt, Snapshot
from riverrun.models.synthetic import Synthetic
from riverrun.store.checkpoints import Engine, Manifest
from riverrun.tests.models.table import ROWS, built

ENGINE = Engine("longlive", "abc", "float32", "cpu sdpa", 1)
OTHERS = {"model": "other", "weights": "def", "dtype": "bfloat16", "backend": "cuda flash", "threads": 2}
FIRST = Epoch(1, "n")
OPENING = OpenRequest("s/a", FIRST, {"state_bytes": 1000}, seed=7)


def one_step(worker: StageWorker, seq: int) -> Any:
    future = worker.submit(StepRequest("s/a", FIRST, seq))
    worker.run_once()
    return future.result(timeout=60)


def worker(engine: Engine = ENGINE, model: Synthetic | None = None) -> StageWorker:
    made = model or Synthetic()
    return StageWorker(made, "one", 4, checkpoints=Checkpoints(made, engine, Shelf()))


class Shelf:
    """A vault that has nothing but buffers of zeros."""

    def write(self, manifest: Manifest, tensors: Any) -> Manifest:
        return manifest

    def read(self, manifest: Manifest) -> dict[str, np.ndarray]:
        return {"buffer": np.zeros(1000, np.uint8)}


@pytest.mark.parametrize("what", [field.name for field in dataclasses.fields(Engine)])
def test_a_state_of_another_engine_is_refused_naming_both(what: str) -> None:
    source, target = worker(), worker(dataclasses.replace(ENGINE, **{what: OTHERS[what]}))
    source.open(OPENING)
    packet = source.export("s/a", FIRST)
    with pytest.raises(Mismatch) as refused:
        target.restore(RestoreRequest(OPENING, 1, packet))
    assert repr(getattr(ENGINE, what)) in str(refused.value)
    assert repr(OTHERS[what]) in str(refused.value)
    for error in (refused.value, SessionFailed("it ended", refused.value)):
        assert meaning(error).code is StatusCode.FAILED_PRECONDITION
    assert target.health().sessions == 0
    one_step(source, 0)  # it goes on where it was


def test_only_an_exact_checkpoint_asks_for_as_many_threads() -> None:
    source, target = worker(), worker(dataclasses.replace(ENGINE, threads=2))
    source.open(OPENING)
    packet = source.export("s/a", FIRST)
    near = Manifest("s", "a", 1, "n", "recache", packet.mark, meta=packet.snapshot.meta, engine=ENGINE)
    with pytest.raises(Mismatch, match="threads 1, this actor has 2"):
        target.restore(RestoreRequest(OPENING, 1, dataclasses.replace(near, kind="exact")))
    target.restore(RestoreRequest(OPENING, 2, near))


@pytest.mark.parametrize("name", ["LongLive", "Ca2-VDM", "EasyControl", "InfVSR", "InfiniteVGGT", "text jacobi"])
def test_models_say_what_they_compute_with(name: str, tmp_path: Any) -> None:
    model = built(next(row for row in ROWS if row.name == name), tmp_path)
    config = ModelConfig("m", "pkg:Model", "generation", args={}, actor=ActorConfig(threads=3))
    assert engine_of(config, model) == Engine("pkg:Model", "", "float32", "cpu sdpa", 3)


def test_a_model_without_weights_computes_with_anything() -> None:
    config = ModelConfig("m", "pkg:Model", "generation", args={}, actor=ActorConfig())
    assert engine_of(config, Synthetic()) == Engine("pkg:Model", threads=1)


# -- moves -------------------------------------------------------------------------------------------------------


class Watched(Synthetic):
    """Counts what it opens, and remembers where what it filled lies."""

    opened, filled = 0, 0

    def open(self, params: Any, seed: int) -> Any:
        self.opened += 1
        return super().open(params, seed)

    def refill(self, state: Any, snapshot: Snapshot) -> Any:
        self.filled = state.buffer.ctypes.data
        return super().refill(state, snapshot)


def test_a_state_that_moves_finds_its_memory_taken_in() -> None:
    source, model = worker(), Watched()
    target = worker(model=model)
    source.open(OPENING)
    for seq in range(3):
        one_step(source, seq)
    target.prepare(RestoreRequest(OPENING, 1))
    assert model.opened == 1
    with pytest.raises(UnknownSession):
        target.attach("s/a", FIRST)
    packet = source.export("s/a", FIRST)
    assert np.shares_memory(packet.snapshot.tensors["buffer"], lent(source))
    target.restore(RestoreRequest(OPENING, 1, packet))
    assert model.opened == 1, "nothing is taken in while the stream stands still"
    assert lent(target).ctypes.data == model.filled
    assert not np.shares_memory(lent(target), lent(source))
    assert [one_step(target, 3).chunks[0].seq, one_step(source, 3).chunks[0].seq] == [3, 3]
    assert np.array_equal(lent(target), lent(source))
    target.check()


def lent(worker: StageWorker) -> np.ndarray:
    return worker.export("s/a", FIRST).snapshot.tensors["buffer"]


def test_memory_that_is_not_needed_is_let_go_of() -> None:
    target = worker(model=Watched())
    target.prepare(RestoreRequest(OPENING, 1))
    target.close("s/a", FIRST, 1)
    assert target.health().sessions == 0
    target.prepare(RestoreRequest(OPENING, 2))
    target.prepare(RestoreRequest(OPENING, 3))
    assert target.health().sessions == 1
    target.close("s/a", FIRST, 3)
    target.check()


class Full(Synthetic):
    def open(self, params: Any, seed: int) -> Any:
        raise Corrupt("no memory")


def test_a_target_without_memory_says_so_before_the_stream_stands_still() -> None:
    target = worker(model=Full())
    with pytest.raises(Corrupt, match="no memory"):
        target.prepare(RestoreRequest(OPENING, 1))
    assert target.health().sessions == 0
