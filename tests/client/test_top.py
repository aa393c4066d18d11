"""`riverrun top`: rates between two looks, and what is shown of whom."""

import io

import pytest
from rich.console import Console

from riverrun.client.commands import top as command
from riverrun.client.commands.top import Look, screen
from riverrun.protos import riverrun_pb2 as pb

ID = "0123456789abcdef0123456789abcdef"


def actor(**fields):
    told = {"actor": "gen-0", "model": "gen", "incarnation": "i1", "up": True, "sessions": 1, "max_sessions": 8}
    return pb.ActorStatus(**(told | fields))


def session(**fields):
    stages = [
        pb.StageStatus(stage="make", model="gen", actor="gen-0", queued=0, compute_ms_p50=20, held_bytes=2_000_000),
        pb.StageStatus(stage="turn", model="gen", actor="gen-0", queued=2, wait_ms_p50=5),
    ]
    told = {"session_id": ID, "graph": "chain", "state": pb.SESSION_STATE_RUNNING, "stages": stages}
    return pb.Session(**(told | fields))


def look(at, actors=(), sessions=()):
    return Look(at, pb.StatusResponse(version="1.2", actors=actors, store="embedded"), list(sessions))


def shown(before, now, monkeypatch, terminal=False):
    """The lines of a screen, each split into its words."""
    written = io.StringIO()
    console = Console(file=written, width=200, force_terminal=terminal, color_system=None)
    monkeypatch.setattr(command, "out", console)
    console.print(screen(before, now, "here:1"))
    return [line.split() for line in written.getvalue().splitlines()]


def row(lines, first):
    return next(line for line in lines if line[:1] == [first])


def test_rates_are_what_was_added_between_two_looks(monkeypatch):
    before = look(10.0, [actor(steps=100)], [session(frames_delivered=40)])
    now = look(12.0, [actor(steps=150, step_ms_p50=12.34)], [session(frames_delivered=88, lead_s=1.25)])
    lines = shown(before, now, monkeypatch)
    assert "24.0 frames/s" in " ".join(lines[0])
    assert row(lines, "gen-0")[:3] == ["gen-0", "gen", "1/8"]
    assert row(lines, "gen-0")[-6:-3] == ["25.0", "12.3", "0.0"]
    make, turn = (line for line in lines if line[:1] == [ID])
    assert make[1:] == ["chain", "running", "make", "gen-0", "24.0", "1.2", "0", "0.0", "20.0", "2.0", "MB"]
    assert turn[1:7] == ["chain", "running", "turn", "gen-0", "2", "5.0"]


def test_what_was_not_there_before_has_no_rate(monkeypatch):
    before = look(10.0, [actor(steps=900)])
    now = look(11.0, [actor(steps=3, incarnation="i2")], [session(frames_delivered=8)])
    lines = shown(before, now, monkeypatch)
    assert "-" in row(lines, "gen-0")
    assert row(lines, ID)[5] == "-"


@pytest.mark.parametrize(
    ("fields", "state"), [({"paused": True}, "paused"), ({"parked": True}, "parked"), ({}, "running")]
)
def test_a_session_that_stands_says_why(monkeypatch, fields, state):
    now = look(1.0, sessions=[session(**fields)])
    assert row(shown(now, now, monkeypatch), ID)[2] == state


def test_an_actor_that_does_not_answer_is_shown_as_such(monkeypatch):
    now = look(1.0, [actor(up=False)])
    assert "answer" in row(shown(now, now, monkeypatch), "gen-0")


def test_nodes_are_named_as_drain_wants_them(monkeypatch):
    now = look(1.0, [actor(node="f" * 56, pid=7)])
    assert row(shown(now, now, monkeypatch), "gen-0")[-2:] == ["7", "f" * 56]
    assert row(shown(now, now, monkeypatch, terminal=True), "gen-0")[-2:] == ["7", "f" * 12]


def test_a_terminal_gets_short_ids(monkeypatch):
    now = look(1.0, sessions=[session()])
    lines = shown(now, now, monkeypatch, terminal=True)
    assert any(ID[:12] in line for line in lines)
    assert not any(ID in line for line in lines)


def test_a_terminal_is_refreshed_until_ctrl_c(monkeypatch):
    looks = iter([look(float(n), sessions=[session(frames_delivered=16 * n)]) for n in range(3)])
    written = io.StringIO()
    console = Console(file=written, width=150, height=20, force_terminal=True, color_system=None)
    monkeypatch.setattr(command, "out", console)
    monkeypatch.setattr(command, "client", lambda address: FakeClient())
    monkeypatch.setattr(command, "look", lambda rr: next(looks, None) or ctrl_c())
    with pytest.raises(KeyboardInterrupt):
        command.top(None, interval=0.0, once=False)
    assert written.getvalue().count("16.0 frames/s") == 2


class FakeClient:
    address = "here:1"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def ctrl_c():
    raise KeyboardInterrupt
