"""The stage actor's core without Ray: numbered steps, epochs, batches, fairness, isolation, admission, leaks."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from riverrun.actors import checkpoints
from riverrun.actors.checkpoints import Checkpoints
from riverrun.actors.sessions import NoRoom
from riverrun.actors.stage import StageWorker
from riverrun.cluster.slack import PATIENCE_S
from riverrun.graphs.stage import (
    BadRequest,
    Epoch,
    OpenRequest,
    SaveOrder,
    StaleEpoch,
    StepFailed,
    StepReply,
    StepRequest,
    UnknownSession,
)
from riverrun.models.base import Chunk, Control, Kind, Port, Unavailable
from riverrun.models.synthetic import Synthetic, SyntheticState, colour, frame_number
from riverrun.store.checkpoints import Engine

FIRST = Epoch(1, "a")


class Stepper:
    """Drives a worker: requests from threads, the batch loop by hand."""

    def __init__(self, worker: StageWorker) -> None:
        self.worker = worker
        self._threads = ThreadPoolExecutor(8)

    def open(self, session: str, epoch: Epoch = FIRST, seed: int = 7, **params):
        return self.worker.open(OpenRequest(session, epoch, params, seed))

    def send(self, session: str, seq: int, epoch: Epoch = FIRST, **fields):
        """A step on its way; it has reached the worker's queue when this returns."""
        before = self.worker._arrivals.qsize()
        future = self._threads.submit(self.worker.step, StepRequest(session, epoch, seq, **fields))
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        while self.worker._arrivals.qsize() == before and not done.wait(0.001):
            pass
        return future

    def step(self, session: str, seq: int, **fields) -> StepReply:
        future = self.send(session, seq, **fields)
        self.worker.run_once()
        self.worker.check()
        return future.result(5)


@pytest.fixture
def stepper():
    made = []

    def make(model=None, max_sessions=4, max_bytes=None, **more) -> Stepper:
        made.append(Stepper(StageWorker(model or Synthetic(), "one", max_sessions, max_bytes, **more)))
        return made[-1]

    yield make
    for one in made:
        while one.worker.run_once():  # a step nobody made would keep its thread, and with it this process, for ever
            pass
        one._threads.shutdown()


class Recording(Synthetic):
    """Remembers who shared each step."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def step(self, states):
        self.batches.append([state.seed for state in states])
        return super().step(states)


def frames(data, seq=0, first=0):
    return Chunk("frames", data, pts=first * 5625, frame_ticks=5625, frames=len(data), first_frame=first, seq=seq)


def test_steps_are_stamped_and_counted(stepper):
    one = stepper()
    reply = one.open("s", prompt="sea")
    assert reply.incarnation == "one"
    assert reply.description.chunk_frames == 4
    for seq in range(3):
        reply = one.step("s", seq, acked=seq - 1)
        (chunk,) = reply.chunks
        assert (chunk.seq, chunk.first_frame, chunk.epoch, reply.ready) == (seq, 4 * seq, 1, True)
        assert [frame_number(f) for f in chunk.data] == list(range(4 * seq, 4 * seq + 4))
        assert (chunk.data[0, 1, 1] == colour(7, "sea", seq)).all()


def test_a_repeat_gets_the_kept_reply_and_the_model_does_not_run(stepper):
    model = Recording()
    one = stepper(model)
    one.open("s")
    first = one.step("s", 0)
    assert one.worker.step(StepRequest("s", FIRST, 0)) is first
    assert len(model.batches) == 1
    one.step("s", 1, acked=0)
    with pytest.raises(UnknownSession, match="step 0 was acked"):
        one.worker.step(StepRequest("s", FIRST, 0))
    with pytest.raises(BadRequest, match="step 5 is too early: step 2 is due"):
        one.worker.step(StepRequest("s", FIRST, 5))


def test_a_repeat_of_the_step_in_hand_waits_for_the_same_reply(stepper):
    model = Recording()
    one = stepper(model)
    one.open("s")
    first = one.send("s", 0)
    again = one._threads.submit(one.worker.step, StepRequest("s", FIRST, 0))
    one.worker.run_once()
    assert first.result(5) == again.result(5)
    assert len(model.batches) == 1


def test_epochs_fence(stepper):
    one = stepper()
    one.open("s", epoch=Epoch(3, "a"))
    for stale in (Epoch(2, "a"), Epoch(3, "b")):
        with pytest.raises(StaleEpoch):
            one.worker.step(StepRequest("s", stale, 0))
    one.step("s", 0, epoch=Epoch(3, "a"))
    attached = one.worker.attach("s", Epoch(4, "c"))
    assert (attached.mark.seq, [r.seq for r in attached.kept]) == (1, [0])
    with pytest.raises(StaleEpoch):
        one.worker.step(StepRequest("s", Epoch(3, "a"), 1))
    with pytest.raises(StaleEpoch):
        one.worker.close("s", Epoch(3, "a"))
    assert one.step("s", 1, epoch=Epoch(4, "c")).chunks[0].epoch == 4


def test_unknown_closed_and_reopened_sessions(stepper):
    one = stepper()
    with pytest.raises(UnknownSession, match="no session s here"):
        one.worker.step(StepRequest("s", FIRST, 0))
    one.worker.close("never", FIRST)
    one.open("s")
    one.open("s")  # a repeated message
    assert one.worker.health().sessions == 1
    one.worker.close("s", FIRST)
    one.worker.close("s", FIRST)
    with pytest.raises(UnknownSession, match="closed"):
        one.worker.step(StepRequest("s", FIRST, 0))
    with pytest.raises(StaleEpoch, match="has ended"):
        one.open("s")  # a late one must not bring it back
    with pytest.raises(StaleEpoch):
        one.open("never")
    assert one.worker.health().sessions == 0


def test_parameters_are_checked(stepper):
    one = stepper()
    for params, words in (
        ({"hight": 3}, "unknown parameter 'hight'"),
        ({"height": "tall"}, "'height' must be int"),
        ({"height": 0}, "height must be 1..4096, got 0"),
        ({"prompt": " "}, "prompt must be"),
    ):
        with pytest.raises(BadRequest, match=words):
            one.open("s", **params)
    assert one.worker.health().sessions == 0


def test_like_sessions_share_a_step_and_unlike_ones_do_not(stepper):
    model = Recording()
    one = stepper(model)
    for seed, name in enumerate("abc"):
        one.open(name, seed=seed)
    one.open("d", seed=3, height=8)
    futures = [one.send(name, 0) for name in "adbc"]
    assert one.worker.run_once() == 3
    assert one.worker.run_once() == 1
    assert model.batches == [[0, 1, 2], [3]]
    assert [f.result(5).batched for f in futures] == [3, 1, 3, 3]


def test_nobody_waits_for_more_than_one_chunk_of_another(stepper):
    model = Recording()
    one = stepper(model)
    one.open("a", seed=0, batch=False)
    one.open("b", seed=1, batch=False)
    pending = {name: one.send(name, 0) for name in "ab"}
    for seq in range(1, 6):  # each asks again as soon as it is answered
        for name in "ab":
            one.worker.run_once()
            pending[name].result(5)
            pending[name] = one.send(name, seq)
    assert model.batches == [[0], [1]] * 5


def test_a_failing_member_leaves_its_batch_alone(stepper):
    model = Recording()
    one = stepper(model)
    one.open("good", seed=0)
    one.open("bad", seed=1, fail_at=1)
    for seq in range(3):
        futures = {"good": one.send("good", seq)}
        if seq < 2:
            futures["bad"] = one.send("bad", seq)
        one.worker.run_once()
        one.worker.check()
        assert frame_number(futures["good"].result(5).chunks[0].data[0]) == 4 * seq
    with pytest.raises(StepFailed, match="session bad, step 1: RuntimeError: told to fail"):
        futures["bad"].result(5) if "bad" in futures else one.worker.step(StepRequest("bad", FIRST, 1))
    assert model.batches == [[0, 1], [0, 1], [0], [1], [0]]
    assert one.worker.health().sessions == 1


class Stubborn(Synthetic):
    """Its State can't go back, so it is stepped alone and tried once."""

    def open(self, params, seed):
        state = super().open(params, seed)
        state.__class__ = type("Onward", (SyntheticState,), {"rewind": property()})
        return state


def test_a_state_that_cannot_go_back_is_stepped_alone(stepper):
    model = Stubborn()
    one = stepper(model)
    one.open("a")
    one.open("b", fail_at=0)
    futures = [one.send(name, 0) for name in "ab"]
    assert [one.worker.run_once(), one.worker.run_once()] == [1, 1]
    assert futures[0].result(5).batched == 1
    with pytest.raises(StepFailed):
        futures[1].result(5)


def test_inputs_are_validated_before_the_batch(stepper):
    one = stepper()
    one.open("s", takes=2, chunk_frames=1, height=4, width=4)
    good, bad = np.full((1, 4, 4, 3), 9, np.uint8), np.zeros((1, 5, 4, 3), np.uint8)
    assert one.step("s", 0, inputs=(frames(good),)).chunks == ()
    with pytest.raises(BadRequest, match=r"takes uint8 \[1, 4, 4, 3\], got uint8 \[1, 5, 4, 3\]"):
        one.step("s", 1, inputs=(frames(good, 1, 1), frames(bad, 2, 2)))
    (chunk,) = one.step("s", 1, inputs=(frames(good, 1, 1),)).chunks  # the refused push left nothing behind
    assert (chunk.data == 246).all()
    assert (chunk.seq, chunk.frame_ticks) == (0, 11250)


def test_finish_of_what_takes_one_chunk_of_a_stream_makes_no_more(stepper):
    class Seeded(Synthetic):
        """A source that is given something at its beginning, as Ca2-VDM is its first frames."""

        def describe(self, params):
            return replace(super().describe(params), inputs=(Port("first", Kind.FRAMES, once=True),))

    one = stepper(Seeded())
    one.open("s")
    assert len(one.step("s", 0).chunks) == 1
    assert one.step("s", 1, finish=True).chunks == ()


def test_finish_uses_up_the_input(stepper):
    one = stepper()
    one.open("s", takes=1, chunk_frames=2, height=4, width=4)
    inputs = (frames(np.zeros((3, 4, 4, 3), np.uint8)),)
    reply = one.step("s", 0, inputs=inputs, finish=True)
    assert [c.seq for c in reply.chunks] == [0, 1, 2]
    assert not reply.ready
    assert one.step("s", 1, finish=True).chunks == ()


def test_controls_take_effect_or_are_rejected(stepper):
    one = stepper()
    one.open("s", prompt="sea")
    one.step("s", 0)
    reply = one.step("s", 1, controls=(Control(1, "prompt", "sand"), Control(2, "prompt", ""), Control(3, "dance")))
    (chunk,) = reply.chunks
    assert (chunk.data[0, 1, 1] == colour(7, "sand", 1)).all()
    assert chunk.revision == 1
    assert [revision for revision, _ in reply.rejected] == [2, 3]
    assert "takes no control, got 'dance'" in reply.rejected[1][1]


def test_admission_says_what_would_fit(stepper):
    one = stepper(max_sessions=2, max_bytes=2_000_000)
    with pytest.raises(NoRoom, match=r"needs 3\.0 MB, 2\.0 of 2\.0 MB are free; smaller parameters would fit"):
        one.open("s", state_bytes=3_000_000, height=1, width=1)
    one.open("a", state_bytes=1_500_000)
    with pytest.raises(NoRoom, match=r"0\.5 of 2\.0 MB are free; one must end first"):
        one.open("b", state_bytes=1_000_000)
    one.open("b")
    with pytest.raises(NoRoom, match="all 2 places are taken"):
        one.open("c")
    one.worker.close("a", FIRST)
    one.open("c", state_bytes=1_000_000)


class Held(Synthetic):
    """Stays in its step until let go."""

    def __init__(self) -> None:
        self.inside, self.go = threading.Event(), threading.Event()

    def step(self, states):
        self.inside.set()
        assert self.go.wait(10)
        return super().step(states)


def test_control_calls_answer_while_a_step_runs_and_close_waits_for_it(stepper):
    model = Held()
    one = stepper(model, max_sessions=2)
    one.open("s")
    waiting = one.send("s", 0)
    loop = threading.Thread(target=one.worker.run)
    loop.start()
    assert model.inside.wait(5)
    assert one.worker.health().running_s >= 0
    one.open("t")
    one.worker.close("s", Epoch(2, "b"))
    with pytest.raises(UnknownSession, match="closed"):
        waiting.result(5)
    assert one.worker.health().sessions == 2  # the step still uses its State
    one.worker.check()
    model.go.set()
    one.worker.stop()
    loop.join(5)
    assert one.worker.health().sessions == 1


class Nonsense(Synthetic):
    def step(self, states):
        return [[object()] for _ in states]


def test_a_model_that_returns_nonsense_ends_its_session_only(stepper):
    one = stepper(Nonsense())
    one.open("s")
    with pytest.raises(StepFailed, match="Corrupt: the model made something of type object, not a chunk"):
        one.step("s", 0)
    assert one.worker.health().sessions == 0


def test_nothing_is_left_of_many_sessions(stepper):
    one = stepper()
    for n in range(50):
        one.open(f"s{n}", state_bytes=1000)
        one.step(f"s{n}", 0)
        one.worker.close(f"s{n}", FIRST)
    health = one.worker.health()
    assert (health.sessions, health.held_bytes, health.reserved_bytes, health.steps) == (0, 0, 0, 50)


class Drawer:
    """A vault of one drawer."""

    def write(self, manifest, tensors):
        return manifest


class AskedEarly(Checkpoints):
    """Notes what somebody hears who has the reply and asks for its checkpoint before that is copied."""

    def begin(self, session, order):
        with pytest.raises(Unavailable) as heard:
            self.saved(session.request.session, session.next_seq - 1)
        self.heard = str(heard.value)
        super().begin(session, order)


def test_who_has_a_reply_can_ask_for_its_checkpoint(monkeypatch):
    early = AskedEarly(Synthetic(), Engine(), Drawer())
    one = Stepper(StageWorker(Synthetic(), "one", 4, None, checkpoints=early))
    one.open("s/a")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "SAVED_S", 0.0)
        one.step("s/a", 0, save=SaveOrder("exact", "{}"))
    assert "not written after" in early.heard
    assert one.worker.saved("s/a", FIRST, 0).mark.seq == 1
    one.step("s/a", 1)
    with pytest.raises(Unavailable, match="no checkpoint was taken with step 1"):
        one.worker.saved("s/a", FIRST, 1)
    one.worker.close("s/a", FIRST)
    one._threads.shutdown()


def test_the_viewer_with_least_left_is_served_first(stepper):
    """Those that may share a step go along only as far as its slack bears; nobody waits for ever."""
    one = stepper(max_sessions=8)
    for name in "abc":
        one.open(name, batch=False)
    for name, lead in (("a", 9.0), ("b", 0.5), ("c", 4.0)):
        one.send(name, 0, lead_s=lead)
    order = []
    while one.worker.run_once():
        order.append(tuple(name for name in "abc" if one.worker._table._sessions[name].next_seq))
    assert order == [("b",), ("b", "c"), ("a", "b", "c")]


@pytest.mark.parametrize(
    ("leads", "batches"),
    [
        ((None, None, None), 1),  # nobody plays yet: all that can
        (
            (0.07, 5.0, 5.0),
            2,
        ),  # a step of two would take longer than its share of 0.07 s; the two others bear each other
        ((5.0, 5.0, 5.0), 1),
        ((0.0, 5.0, 5.0), 2),  # the one that is late goes alone
        ((0.0, 0.0, 0.0), 1),  # all are late: together most is made
    ],
)
def test_a_late_session_is_held_up_by_part_of_its_slack(stepper, leads, batches):
    clock = FakeClock()
    one = stepper(Timed(clock, each_ms=40), 8, clock=clock)
    for name in "abc":
        one.open(name)
    for seq in range(3):  # what steps take is learned: alone and together
        for name in "abc":
            one.step(name, 2 * seq, acked=2 * seq - 1)
        _together(one, dict.fromkeys("abc", 2 * seq + 1), dict.fromkeys("abc"))
    before = one.worker.health().steps
    _together(one, dict.fromkeys("abc", 6), dict(zip("abc", leads, strict=True)))
    assert one.worker.health().steps - before == batches


@pytest.mark.parametrize(("waited", "expected"), [(0.0, "cba"), (PATIENCE_S + 0.5, "acb")])
def test_a_first_chunk_takes_its_turn_but_not_without_end(stepper, waited, expected):
    """b came before it and has something left, c stands; who has had no picture for long goes before both."""
    clock = FakeClock()
    one = stepper(Timed(clock, each_ms=40), 8, clock=clock)
    for name in "abc":
        one.open(name, batch=False)
    one.send("b", 0, lead_s=0.5 + waited)
    clock.now += 0.01
    one.send("a", 0)
    clock.now += waited
    one.send("c", 0, lead_s=0.0)
    served = ""
    while one.worker.run_once():
        (made,) = (n for n in "abc" if n not in served and one.worker._table._sessions[n].next_seq)
        served += made
    assert served == expected


def test_where_not_all_can_be_served_in_time_tenants_take_turns(stepper):
    """One tenant has three sessions that wait, the other one that has something left: it has every other step."""
    clock = FakeClock()
    one = stepper(Timed(clock, each_ms=40), 8, clock=clock)
    for name in "abcz":
        one.open(name, batch=False)
    turns, due = [], dict.fromkeys("abcz", 0)
    for _ in range(8):
        for name in "abcz":
            if one.worker._table._sessions[name].next_seq == due[name] and not one.worker._table._sessions[name].job:
                own = {"tenant": "modest", "lead_s": 0.4} if name == "z" else {"tenant": "greedy", "lead_s": 0.0}
                one.send(name, due[name], acked=due[name] - 1, **own)
        one.worker.run_once()
        (made,) = (name for name in "abcz" if one.worker._table._sessions[name].next_seq > due[name])
        due[made] += 1
        turns.append(made)
    assert turns == ["a", "z", "b", "z", "c", "z", "a", "z"]


def test_what_steps_take_is_told_by_how_many_want_chunks(stepper):
    clock = FakeClock()
    one = stepper(Timed(clock, each_ms=40), 8, clock=clock)
    for name in "ab":
        one.open(name)
    one.step("a", 0)
    _together(one, {"a": 1, "b": 0}, {"a": None, "b": None})
    (measured,) = one.worker.look().measured
    assert (measured.sessions, measured.steps) == (2, 3)
    assert measured.took_ms == pytest.approx((40 + 60 + 60) / 3)
    assert {r.session or r.stage: r.alone_ms for r in one.worker.look().residents} == pytest.approx({"a": 40, "b": 60})
    clock.now += 100
    assert one.worker.look().measured == ()


def test_a_retired_actor_lets_nobody_in(stepper):
    one = stepper(max_sessions=8)
    one.open("a")
    assert not one.worker.retire()
    one.worker.close("a", FIRST)
    assert one.worker.retire()
    with pytest.raises(NoRoom, match="out of service"):
        one.open("b")


class FakeClock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Timed(Synthetic):
    """Its steps take time of a clock: `each_ms` for the first of those that share one, half of it for each more."""

    def __init__(self, clock: FakeClock, each_ms: float) -> None:
        super().__init__()
        self._clock, self._each_ms = clock, each_ms

    def step(self, states):
        self._clock.now += self._each_ms * (1 + (len(states) - 1) / 2) / 1000
        return super().step(states)


def _together(one: Stepper, due: dict[str, int], leads: dict[str, float | None]) -> None:
    for name, seq in due.items():
        one.send(name, seq, lead_s=leads[name], acked=seq - 1)
    while one.worker.run_once():
        one.worker.check()
