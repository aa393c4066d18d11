"""What an actor remembers of sessions that have ended: by time, so that many that end do not push out the last."""

import pytest

from riverrun.actors import sessions
from riverrun.actors.stage import StageWorker
from riverrun.graphs.stage import Epoch, OpenRequest, StaleEpoch
from riverrun.models.synthetic import Synthetic

EPOCH = Epoch(1, "a")


def test_ended_sessions_are_remembered_by_time(monkeypatch):
    now = [0.0]
    worker = StageWorker(Synthetic(), "one", 4, None, clock=lambda: now[0])
    worker.open(OpenRequest("first", EPOCH, {}, 7))
    worker.close("first", EPOCH)
    for n in range(3000):
        worker.close(f"other {n}", EPOCH)
    with pytest.raises(StaleEpoch, match="session first has ended: session first was closed"):
        worker.open(OpenRequest("first", EPOCH, {}, 7))
    now[0] = sessions.REMEMBER_S + 1
    worker.close("last", EPOCH)
    assert list(worker._table._ended) == ["last"]
    monkeypatch.setattr(sessions, "MOST_REMEMBERED", 10)
    for n in range(100):
        worker.close(f"more {n}", EPOCH)
    assert len(worker._table._ended) == 10
