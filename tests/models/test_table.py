"""What every model of the table keeps to, whatever its method."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from riverrun import models
from riverrun.kernels.cache import KVCache
from riverrun.models.base import (
    BadRequest,
    Chunk,
    Control,
    Corrupt,
    Description,
    Kind,
    Snapshot,
    StreamModel,
    Unavailable,
    parse_params,
)
from riverrun.tests.models.table import ROWS, Row, built

FORMS: dict[Kind, tuple[type, tuple[int, ...] | None]] = {
    Kind.FRAMES: (np.uint8, (3,)),
    Kind.DEPTH: (np.float32, ()),
    Kind.POINTS: (np.float32, (3,)),
    Kind.CONFIDENCE: (np.float32, ()),
    Kind.CAMERA: (np.float32, None),
    Kind.TEXT: (np.int64, None),
    Kind.CONDITION: (np.float32, None),
}
"""Of each kind: dtype, and what follows [T, H, W]; None if it has no H and W."""


@dataclass
class Session:
    """A State, and how much of its input it has been given."""

    row: Row
    model: StreamModel
    state: Any
    number: int
    turn: int = 0

    def make_ready(self) -> None:
        for _ in range(40):
            if self.model.ready(self.state):
                return
            self.push()
        raise AssertionError("forty rounds of input, and it can't step yet")

    def push(self) -> None:
        for chunk in self.row.feed(self.number, self.turn):
            self.model.push(self.state, chunk)
        self.turn += 1

    def run(self, steps: int) -> list[Chunk]:
        chunks: list[Chunk] = []
        for _ in range(steps):
            self.make_ready()
            chunks += self.model.step([self.state])[0]
        return chunks

    def control(self, revision: int) -> None:
        self.model.control(self.state, self.row.control(revision))

    def twin(self) -> Session:
        """A session from its snapshot as a store keeps it, every array of which is then overwritten."""
        taken = self.state.snapshot()
        stored = Snapshot(json.loads(json.dumps(taken.meta)), {name: a.copy() for name, a in taken.tensors.items()})
        twin = dataclasses.replace(self, state=self.model.restore(self.state.params, stored))
        for snapshot in (stored, taken):
            for array in snapshot.tensors.values():
                array.fill(99)  # neither the old State nor the new one may lean on it
        return twin


@pytest.fixture(scope="module", params=ROWS, ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


@pytest.fixture(scope="module")
def model(row: Row, tmp_path_factory: pytest.TempPathFactory) -> StreamModel:
    return built(row, tmp_path_factory.mktemp("weights"))


def start(row: Row, model: StreamModel, number: int = 1) -> Session:
    session = Session(row, model, model.open(parse_params(model.Params, row.params), 5 + number), number)
    if row.first_prompt:
        assert not model.ready(session.state)
        model.control(session.state, dataclasses.replace(row.control(number), revision=0))
    for chunk in row.given(number):
        model.push(session.state, chunk)
    return session


def described(session: Session) -> Description:
    return session.model.describe(session.state.params)


def same(a: list[Chunk], b: list[Chunk]) -> bool:
    def bare(chunks: list[Chunk]) -> list[Chunk]:
        return [dataclasses.replace(chunk, data=None) for chunk in chunks]

    return bare(a) == bare(b) and all(np.array_equal(x.data, y.data) for x, y in zip(a, b, strict=True))


def some_steps(row: Row, wanted: int, taken: int = 0) -> int:
    return wanted if row.length is None else min(wanted, row.length - taken)


def test_chunks_are_as_described(row: Row, model: StreamModel) -> None:
    session = start(row, model)
    description = described(session)
    outputs = {port.name: port.kind for port in description.outputs}
    clock = dict.fromkeys(outputs, -1)
    steps = some_steps(row, 2 * row.window)
    for step in range(steps):
        chunks = session.run(1)
        for port, kind in outputs.items():
            ours = [chunk for chunk in chunks if chunk.port == port]
            assert len(ours) <= description.max_chunks
            for chunk in ours:
                check_form(chunk, kind, description)
                assert chunk.pts >= 0
                assert clock[port] in (-1, chunk.pts), "a chunk begins when the one before has ended"
                clock[port] = chunk.pts + chunk.frames * chunk.frame_ticks
        assert {chunk.port for chunk in chunks} <= set(outputs)
        check_counts(chunks, description, is_first=step == 0)
    assert all(end > 0 for end in clock.values()), "every port was used"


def check_form(chunk: Chunk, kind: Kind, description: Description) -> None:
    dtype, rest = FORMS[kind]
    assert isinstance(chunk.data, np.ndarray)
    assert chunk.data.dtype == dtype
    assert chunk.data.flags.c_contiguous, "it goes into Ray's store and onto the wire as it lies"
    assert len(chunk.data) == chunk.frames > 0
    assert chunk.frame_ticks > 0
    if rest is not None:
        assert chunk.data.shape[1:] == (*description.frame_shape, *rest)


def check_counts(chunks: list[Chunk], description: Description, is_first: bool) -> None:
    most = description.first_frames if is_first and description.first_frames else description.chunk_frames
    is_text = any(port.kind == Kind.TEXT for port in description.outputs)
    for chunk in chunks:
        assert chunk.frames <= most if is_text else chunk.frames == most


def test_inputs_and_latency_are_as_described(row: Row, model: StreamModel) -> None:
    """Given a frame at a time, it makes its first chunk when it said it would."""
    session = start(row, model)
    description = described(session)
    chunks = row.given(1) + row.feed(1, 0)
    assert {chunk.port for chunk in chunks} == {port.name for port in description.inputs}
    session = Session(row, model, model.open(session.state.params, 0), 1)
    if row.first_prompt:
        session.control(0)
    if row.feed(1, 0):
        for chunk in row.given(1):
            model.push(session.state, chunk)
    needed = 0
    for chunk in (chunk for turn in range(9) for chunk in row.feed(1, turn) or row.given(1)):
        for i in range(chunk.frames):
            if model.ready(session.state):
                break
            part = {"data": chunk.data[i : i + 1], "pts": chunk.pts + i * chunk.frame_ticks, "frames": 1}
            model.push(session.state, dataclasses.replace(chunk, **part))
            needed += 1
    assert needed == description.latency_frames
    assert model.step([session.state])[0] or description.outputs[0].kind == Kind.TEXT


def test_what_is_left_comes_out_at_the_end(row: Row, model: StreamModel) -> None:
    session = start(row, model)
    chunks = session.run(1)
    if row.feed(1, 0):
        session.push()
    while row.feed(1, 0) and model.ready(session.state):
        chunks += model.step([session.state])[0]
    chunks += model.finish(session.state)
    for port in described(session).outputs:
        ours = [chunk for chunk in chunks if chunk.port == port.name]
        ends = [chunk.pts + chunk.frames * chunk.frame_ticks for chunk in ours]
        assert [chunk.pts for chunk in ours[1:]] == ends[:-1]
    assert model.finish(session.state) == []


def test_a_restored_stream_is_bit_equal_over_a_full_window(row: Row, model: StreamModel) -> None:
    session = start(row, model)
    done = some_steps(row, row.window, taken=2)
    session.run(done)
    session.make_ready()  # with input that waits
    twin = session.twin()
    steps = some_steps(row, row.window + 2, taken=done)
    assert same(session.run(steps), twin.run(steps))
    assert twin.state.nbytes == session.state.nbytes


def test_what_is_lent_is_what_would_be_copied_and_fills_a_blank_state(row: Row, model: StreamModel) -> None:
    session = start(row, model)
    done = some_steps(row, row.window, taken=2)
    session.run(done)
    session.make_ready()
    copied, lent = session.state.snapshot(), session.state.lend()
    assert json.dumps(copied.meta) == json.dumps(lent.meta)
    assert all(np.array_equal(copied.tensors[name], array) for name, array in lent.tensors.items())
    for array in copied.tensors.values():
        array.setflags(write=False)  # as what lies in Ray's store
    params = session.state.params
    fill = getattr(model, "refill", lambda _, snapshot: model.restore(params, snapshot))
    twin = dataclasses.replace(session, state=fill(model.open(params, 99), copied))
    steps = some_steps(row, 2, taken=done)
    assert same(session.run(steps), twin.run(steps))


def test_a_stream_is_restored_before_its_first_step(row: Row, model: StreamModel) -> None:
    session = start(row, model)
    session.make_ready()
    twin = session.twin()
    assert same(session.run(1), twin.run(1))


def test_snapshots_of_another_version_or_without_a_part_are_corrupt(row: Row, model: StreamModel) -> None:
    session = start(row, model)
    session.run(1)
    if row.control is not None:
        session.control(3)
    session.make_ready()
    snapshot, params = session.state.snapshot(), session.state.params
    assert snapshot.tensors
    with pytest.raises(Corrupt, match="version 99"):
        model.restore(params, dataclasses.replace(snapshot, meta={**snapshot.meta, "version": 99}))
    for name in snapshot.tensors:
        fewer = {other: array for other, array in snapshot.tensors.items() if other != name}
        with pytest.raises(Corrupt, match="the snapshot lacks"):
            model.restore(params, dataclasses.replace(snapshot, tensors=fewer))


def test_a_control_takes_hold_at_the_next_chunk_and_is_in_the_snapshot(row: Row, model: StreamModel) -> None:
    session = start(row, model)
    assert bool(described(session).controls) == (row.control is not None)
    session.run(1)
    if row.control is None:
        with pytest.raises(BadRequest):
            model.control(session.state, Control(1, "prompt", "x"))
        return
    plain = session.twin()
    session.control(7)
    twin = session.twin()
    changed, again, unchanged = (each.run(1) for each in (session, twin, plain))
    assert same(changed, again)
    assert np.array_equal(changed[0].data, unchanged[0].data) != row.control_shows


def test_revisions_are_told_in_order(row: Row, model: StreamModel) -> None:
    """The stage stamps what a model leaves at 0; what a model says must be true."""
    session = start(row, model)
    seen = [chunk.revision for chunk in session.run(1)]
    if row.control is not None:
        session.control(4)
        seen += [chunk.revision for chunk in session.run(2)]
    assert seen == sorted(seen)
    assert set(seen) <= {0, 4}


def test_a_batch_from_equal_states_equals_single_sessions(row: Row, model: StreamModel) -> None:
    """Unlike sessions, at unlike places of their streams; a control waits for one."""
    alone = [start(row, model, number) for number in range(3)]
    for ahead, session in enumerate(alone):
        session.run(some_steps(row, 1 + ahead))
        session.make_ready()
    if row.control is not None:
        alone[2].control(7)
    together = [session.twin() for session in alone]
    keys = {model.batch_key(session.state) for session in together}
    if keys == {None}:
        return
    assert len(keys) == 1
    expected = [model.step([session.state])[0] for session in alone]
    for wanted, chunks in zip(expected, model.step([session.state for session in together]), strict=True):
        for a, b in zip(wanted, chunks, strict=True):
            assert_near(b.data, a.data)
    for one, other in zip(alone, together, strict=True):
        left, right = one.state.snapshot(), other.state.snapshot()
        assert json.dumps(left.meta) == json.dumps(right.meta)
        for name, array in left.tensors.items():
            if not name.startswith(row.loose or ("-",)):
                assert_near(right.tensors[name], array)


def test_a_state_goes_back_to_before_a_step(row: Row, model: StreamModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each kind of step, and one that fails late; bit for bit, and what follows too."""
    session = start(row, model)
    twin = session.twin()
    for step in range(some_steps(row, row.window + 3)):
        session.make_ready()
        turn, mark = session.turn, session.state.mark()
        take_part(session, step)
        with monkeypatch.context() as patch:
            if step % 2:
                patch.setattr(*row.breaks(model), lambda *_, **__: 1 / 0)
            with contextlib.suppress(ZeroDivisionError):
                model.step([session.state])
        session.state.rewind(mark)
        session.turn = turn
        assert_equal_states(session, twin)
        take_part(session, step)
        take_part(twin, step)
        assert same(session.run(1), twin.run(1))


def take_part(session: Session, step: int) -> None:
    """What may come between two steps: input beyond what is needed, and now and then a control."""
    if step == 1 and session.row.feed(session.number, 0):
        session.push()
    if session.row.control is not None and step % 3 == 2:
        session.control(10 + step)


def assert_equal_states(one: Session, other: Session) -> None:
    other.make_ready()
    left, right = one.state.snapshot(), other.state.snapshot()
    assert json.dumps(left.meta) == json.dumps(right.meta)
    assert left.tensors.keys() == right.tensors.keys()
    for name, array in left.tensors.items():
        assert np.array_equal(array, right.tensors[name]), name


def test_a_failed_batch_is_taken_back_and_its_members_stepped_alone(
    row: Row, model: StreamModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = [start(row, model, number) for number in range(3)]
    for ahead, session in enumerate(together):
        session.run(some_steps(row, 1 + ahead))
        session.make_ready()
    alone = [session.twin() for session in together]
    if {model.batch_key(session.state) for session in together} == {None}:
        return
    marks = [session.state.mark() for session in together]
    with monkeypatch.context() as patch:
        patch.setattr(*row.breaks(model), lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.step([session.state for session in together])
    for session, mark in zip(together, marks, strict=True):
        session.state.rewind(mark)
    for session, twin in zip(together, alone, strict=True):
        assert same(session.run(1), twin.run(1))


def assert_near(actual: np.ndarray, wanted: np.ndarray) -> None:
    """Floats within 1e-5 of the values' size (random weights make them large), pixels within a level, ids equal."""
    if wanted.dtype == np.uint8:
        assert np.abs(wanted.astype(int) - actual).max(initial=0) <= 1
    elif np.issubdtype(wanted.dtype, np.floating):
        largest = max(1.0, float(np.abs(wanted).max(initial=0)))
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-5 * largest)
    else:
        assert np.array_equal(actual, wanted)


def test_memory_is_bounded_and_as_described_over_many_windows(row: Row, model: StreamModel) -> None:
    session = start(row, model)
    session.run(some_steps(row, row.window + 1))
    stated = described(session).retained_bytes + row.beyond
    held = []
    for _ in range(some_steps(row, min(20 * row.window, 60), taken=row.window)):
        session.run(1)
        held.append(session.state.nbytes)
        if row.holds == "exactly":
            held[-1] -= waiting_bytes(row, session)
    assert all(nbytes == stated if row.holds == "exactly" else nbytes <= stated for nbytes in held)


def waiting_bytes(row: Row, session: Session) -> int:
    """Of input pushed beyond what the step took."""
    return sum(int(frame.pixels.nbytes) for frame in getattr(session.state, "waiting", ()))


def test_a_failed_step_is_said_and_no_neighbour_notices(
    row: Row, model: StreamModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, neighbour = start(row, model), start(row, model, number=2)
    session.run(some_steps(row, 2))
    neighbour.run(1)
    session.make_ready()
    before, other = session.twin(), neighbour.twin()
    with monkeypatch.context() as patch:
        patch.setattr(*row.breaks(model), lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.step([session.state])
    if row.failure == "poisons":
        with pytest.raises(Corrupt, match="failed in an earlier step; restore a snapshot"):
            model.step([session.state])
        with pytest.raises(Corrupt, match="only an earlier snapshot"):
            session.state.snapshot()
        before.run(1)
    else:
        assert same(session.run(2), before.run(2))
    assert same(neighbour.run(2), other.run(2))


def test_refused_inputs_and_controls_leave_the_session_as_it_was(row: Row, model: StreamModel) -> None:
    session = start(row, model)
    session.run(1)
    twin = session.twin()
    for port in [port.name for port in described(session).inputs] or ["frames"]:
        with pytest.raises(BadRequest):
            model.push(session.state, Chunk(port, np.zeros((1, 2, 2)), pts=0, frame_ticks=1, frames=1))
    with pytest.raises(BadRequest, match="weather"):
        model.control(session.state, Control(9, "weather", "x"))
    assert same(session.run(2), twin.run(2))


def test_wrong_params_are_refused(row: Row, model: StreamModel) -> None:
    assert row.wrong
    for values, message in (*row.wrong, ({**row.params, "no_such": 1}, "unknown parameter 'no_such'")):
        with pytest.raises(BadRequest, match=message):
            model.open(parse_params(model.Params, values), 0)


def test_no_memory_for_a_session_is_said(row: Row, model: StreamModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(KVCache, "__init__", full)
    if row.name.startswith(("EasyControl", "synthetic")):  # they have no cache
        return
    with pytest.raises(Unavailable, match="cpu has no memory left for a session"):
        start(row, model).run(1)


def test_sessions_know_nothing_of_each_other(row: Row, model: StreamModel) -> None:
    steps = some_steps(row, row.window)
    assert same(start(row, model).run(steps), start(row, model).run(steps))


def test_every_stage_of_the_tree_has_a_row(tmp_path: Path) -> None:
    """A model added later is found here until it has its row."""
    for module in pkgutil.walk_packages(models.__path__, f"{models.__name__}."):
        importlib.import_module(module.name)
    rows = {type(built(row, folder(tmp_path, i))) for i, row in enumerate(ROWS)}
    assert concrete(StreamModel) - rows == set()


def folder(base: Path, number: int) -> Path:
    path = base / str(number)
    path.mkdir()
    return path


def concrete(cls: type) -> set[type]:
    """Classes of the package that can be instantiated."""
    found = {sub for direct in cls.__subclasses__() for sub in concrete(direct)}
    is_ours = cls.__module__.startswith("riverrun.models.") and not getattr(cls, "__abstractmethods__", None)
    return found | ({cls} if is_ours else set())
