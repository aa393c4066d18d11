"""What a controller leaves to the next one: its last decisions, and what it has learned that steps take."""

import json
from dataclasses import asdict

import pytest

from riverrun.actors import journal, notes
from riverrun.actors.decisions import Decision, Decisions
from riverrun.actors.journal import FOR_S, KEPT, Journal
from riverrun.actors.notes import Notebook, Notes
from riverrun.cluster.latency import Formula, Learned


@pytest.fixture
def stored(monkeypatch):
    """What lies in Ray's store. writes: how often something was put there."""
    kept = Stored()
    for module in (journal, notes):
        monkeypatch.setattr(module, "_internal_kv_get", kept.get)
        monkeypatch.setattr(module, "_internal_kv_put", kept.put)
    return kept


class Stored(dict):
    writes = 0

    def put(self, key, value, overwrite):
        assert overwrite
        self.writes += 1
        self[key] = value


def decision(n, session="s", at=1000.0):
    return Decision(at + n, "place", "m", session, f"line {n}", {"m-0": "1 of 4"})


def test_the_next_one_has_the_last_decisions_and_what_was_learned(stored):
    learned = Learned(Formula()).told(100.0, 2, 4, 170.0).told(100.0, 3, 4, 260.0)
    Journal("one").keep([decision(n) for n in range(KEPT + 10)], {"m": learned.ratios})
    found = Journal("one")
    last = found.decisions(now=1000.0)
    assert last == [decision(n) for n in range(10, KEPT + 10)]
    assert Decisions(last).about("s")[-1] == decision(KEPT + 9)
    assert Learned(Formula(), found.learned()["m"]).chunk_ms(90.0, 2, 4) == learned.chunk_ms(90.0, 2, 4)
    assert (Journal("another").decisions(1000.0), Journal("another").learned()) == ([], {})


def test_what_is_older_than_a_day_is_not_taken_up(stored):
    Journal("one").keep([decision(0), decision(60)], {})
    assert Journal("one").decisions(now=1000.0 + FOR_S + 30) == [decision(60)]


def test_nothing_is_written_that_has_not_changed(stored):
    kept, decisions, learned = Journal("one"), [decision(0)], {"m": {1: (2.0, 1.5)}}
    kept.keep(decisions, learned)
    before = stored.writes
    kept.keep(list(decisions), {"m": dict(learned["m"])})
    assert stored.writes == before
    kept.keep([*decisions, decision(1)], learned)
    assert stored.writes == before + 1


def test_what_a_later_version_left_does_not_keep_a_controller_from_starting(stored):
    later = asdict(decision(1)) | {"weather": "fair"}
    stored[b"riverrun:one:decisions"] = json.dumps([asdict(decision(0)), later]).encode()
    stored[b"riverrun:one"] = json.dumps({"frozen": True, "weather": "fair"}).encode()
    assert Journal("one").decisions(1000.0) == [decision(0)]
    assert Notebook("one").read() == Notes(frozen=True)
