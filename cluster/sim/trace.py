"""What users do, as lists of events: the workloads of peers.md §3.2, and traces in TurboServe's published form.

Every generator is a function of its seed alone.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple


class Act(StrEnum):
    ARRIVE = "arrive"
    ACTIVE = "active"
    IDLE = "idle"
    LEAVE = "leave"
    SWITCH = "switch"
    """Of the prompt, while it is active."""


class Event(NamedTuple):
    """A session that arrives wants nothing yet; it is active from its first `active` on."""

    time_s: float
    session: str
    act: Act


@dataclass(frozen=True)
class Trace:
    """seconds: how long it is. fails: (time, share of the nodes) that are lost; share 0: one worker's process dies.
    store_away: (from, until) nobody decides anything, since the session store can't be reached."""

    name: str
    events: tuple[Event, ...]
    seconds: float
    fails: tuple[tuple[float, float], ...] = ()
    store_away: tuple[tuple[float, float], ...] = ()

    @property
    def peak_active(self) -> int:
        """The most sessions active at once."""
        peak = 0
        active: set[str] = set()
        for event in self.events:
            if event.act is Act.ACTIVE:
                active.add(event.session)
            elif event.act in (Act.IDLE, Act.LEAVE):
                active.discard(event.session)
            peak = max(peak, len(active))
        return peak

    @property
    def active_at_once(self) -> int:
        """Sessions that are active from the very begin."""
        return len({event.session for event in self.events if event.time_s <= 0 and event.act is Act.ACTIVE})


def demo(seed: int, times: float = 1.0, seconds: float = 1800.0) -> Trace:
    """W1, the stand-in for TurboServe's public demo: 0.955 arrivals a second modulated by phases, lognormal stays,
    spells and gaps."""
    draw = random.Random(f"demo:{seed}")
    found: list[Event] = []
    phase_end, phase = 0.0, 1.0
    now = 0.0
    for number in itertools.count():
        if now >= phase_end:
            phase_end, phase = now + draw.uniform(60, 180), draw.uniform(0.5, 1.8)
        now += draw.expovariate(0.955 * times * phase)
        if now >= seconds:
            break
        stay = min(draw.lognormvariate(math.log(45), 1.2), 600)
        found += _spells(draw, f"s{number:06d}", now, min(now + stay, seconds), 6, 5, draw.random() < 0.6)
    return _trace("W1 demo", found, seconds)


def waves(seed: int, times: float = 1.0) -> Trace:
    """W2, TeleFuser's: 4, 8, 12, 16, 8, 4 users, who come within 10 to 15 s of a phase's begin; the newest leave
    first."""
    draw = random.Random(f"waves:{seed}")
    found: list[Event] = []
    here: list[str] = []
    began, names = 0.0, (f"s{number:06d}" for number in itertools.count())
    for users, lasts in zip((4, 8, 12, 16, 8, 4), (45, 55, 55, 80, 50, 45), strict=True):
        spread = draw.uniform(10, 15)
        while len(here) < round(users * times):
            name, at = next(names), began + draw.uniform(0, spread)
            found += _whole(name, at)
            here.append(name)
        while len(here) > round(users * times):
            found.append(Event(began + draw.uniform(0, spread), here.pop(), Act.LEAVE))
        began += lasts
    return _trace("W2 waves", found, began)


def poisson(seed: int, times: float = 1.0, seconds: float = 600.0) -> Trace:
    """W3, SlackServe's style: one stream a second (for 16 workers), of 30 to 120 s, always active."""
    draw = random.Random(f"poisson:{seed}")
    stays = _arrivals(draw, times, seconds, lambda: draw.uniform(30, 120))
    return _trace("W3 poisson", stays, seconds)


def bursts(seed: int, times: float = 1.0, seconds: float = 300.0) -> Trace:
    """W4, of the fork's five: of 24, two thirds come at once, some fall silent together, and come back together."""
    draw = random.Random(f"bursts:{seed}")
    found: list[Event] = []
    for number in range(round(24 * times)):
        name = f"s{number:06d}"
        found += _whole(name, draw.uniform(0, 2) if number % 3 else draw.uniform(0, 60))
        for begin in (90.0, 180.0):
            if draw.random() < 0.5:
                found += [Event(begin + draw.uniform(0, 1), name, Act.IDLE)]
                found += [Event(begin + 30 + draw.uniform(0, 1), name, Act.ACTIVE)]
    return _trace("W4 bursts", found, seconds)


def geometric(seed: int, times: float = 1.0, seconds: float = 600.0) -> Trace:
    """W5, vLLM-Omni's: a Poisson arrival in 2 s, lengths geometric, of 40 chunks of 0.75 s in the mean."""
    draw = random.Random(f"geometric:{seed}")
    stays = _arrivals(
        draw, 0.5 * times, seconds, lambda: 0.75 * math.ceil(math.log(1 - draw.random()) / math.log(1 - 1 / 40))
    )
    return _trace("W5 geometric", stays, seconds)


def failures(seed: int, times: float = 1.0, seconds: float = 600.0) -> Trace:
    """W6, ours: the demo's users, one in three of whom switches the prompt; every minute a worker dies; once a tenth
    of the nodes; once the store is away for 10 s."""
    draw = random.Random(f"failures:{seed}")
    base = demo(seed, times, seconds)
    switches = [e._replace(time_s=e.time_s + 2, act=Act.SWITCH) for e in base.events if e.act is Act.ACTIVE]
    found = [*base.events, *(switch for switch in switches if draw.random() < 1 / 3 and switch.time_s < seconds)]
    deaths = [(60.0 * k, 0.0) for k in range(1, int(seconds // 60))]
    nodes = (seconds / 2 + 30, 0.1)
    away = ((seconds / 4 + 10, seconds / 4 + 20),)
    return replace(_trace("W6 failures", found, seconds), fails=tuple(sorted([*deaths, nodes])), store_away=away)


WORKLOADS: Mapping[str, Callable[[int, float], Trace]] = {
    "W1": demo,
    "W2": waves,
    "W3": poisson,
    "W4": bursts,
    "W5": geometric,
    "W6": failures,
}
PEAKS: Mapping[str, float] = {"W1": 80, "W2": 16, "W3": 86, "W4": 24, "W5": 22, "W6": 70}
"""Sessions active at once at most, about, of each workload as it is."""


def workload(name: str, seed: int, active: int) -> Trace:
    """One of WORKLOADS with so many users that at most `active`, and hardly fewer, are active at once."""
    return thinned(WORKLOADS[name](seed, 1.3 * active / PEAKS[name]), active, seed)


def thinned(trace: Trace, active: int, seed: int = 0) -> Trace:
    """Sessions of a trace, as many as can be had with at most `active` of them active at once. Who stays in a trace of
    n stays in a larger one too (the rule of TeleFuser: by SHA-256 of seed and session)."""
    if trace.peak_active <= active:
        return trace
    names = {event.session for event in trace.events}
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())

    def part(many: int) -> Trace:
        kept = set(ranked[:many])
        return replace(trace, events=tuple(event for event in trace.events if event.session in kept))

    low, high = 0, len(ranked)
    while high - low > 1 + len(ranked) // 1000:
        middle = (low + high) // 2
        low, high = (middle, high) if part(middle).peak_active <= active else (low, middle)
    return part(low)


def cut(trace: Trace, begin: float, seconds: float) -> Trace:
    """A part of a trace; who is there at its begin arrives at once."""
    here: dict[str, bool] = {}
    found: list[Event] = []
    for event in trace.events:
        if event.time_s > begin + seconds:
            break
        if event.time_s > begin:
            found.append(event._replace(time_s=event.time_s - begin))
        elif event.act is Act.LEAVE:
            here.pop(event.session, None)
        elif event.act is not Act.SWITCH:
            here[event.session] = event.act is Act.ACTIVE
    there = [Event(0.0, name, Act.ARRIVE) for name in here]
    there += [Event(0.0, name, Act.ACTIVE) for name, is_active in here.items() if is_active]
    moved = tuple((at - begin, share) for at, share in trace.fails if begin < at <= begin + seconds)
    away = tuple((since - begin, until - begin) for since, until in trace.store_away if since > begin)
    return Trace(trace.name, (*there, *found), seconds, moved, away)


def read(path: Path) -> Trace:
    """A trace in TurboServe's published form: JSON with events {time_s, sequence, event_type, session_id, payload}.

    Raises ValueError for a file of another form.
    """
    document = json.loads(path.read_text())
    rows = document["events"] if isinstance(document, dict) else document
    found: list[Event] = []
    for row in sorted(rows, key=lambda row: (row["time_s"], row.get("sequence", 0))):
        at, name, kind = float(row["time_s"]), str(row["session_id"]), row["event_type"]
        if kind == "arrival":
            found.append(Event(at, name, Act.ARRIVE))
            if row.get("payload", {}).get("active"):
                found.append(Event(at, name, Act.ACTIVE))
        elif kind in _KINDS:
            found.append(Event(at, name, _KINDS[kind]))
        else:
            raise ValueError(f"{path.name}: event_type is arrival, {', '.join(_KINDS)}, got {kind!r}")
    return Trace(path.stem, tuple(found), found[-1].time_s if found else 0.0)


_KINDS = {"user_active": Act.ACTIVE, "user_idle": Act.IDLE, "departure": Act.LEAVE}
_ORDER = {act: place for place, act in enumerate((Act.LEAVE, Act.IDLE, Act.ARRIVE, Act.ACTIVE, Act.SWITCH))}


def _whole(name: str, at: float) -> list[Event]:
    """It comes, and is active at once."""
    return [Event(at, name, Act.ARRIVE), Event(at, name, Act.ACTIVE)]


def _arrivals(draw: random.Random, rate: float, seconds: float, stay: Callable[[], float]) -> Iterator[Event]:
    """Poisson arrivals of sessions that are active for as long as `stay` says."""
    now = 0.0
    for number in itertools.count():
        now += draw.expovariate(rate)
        if now >= seconds:
            return
        name = f"s{number:06d}"
        yield from _whole(name, now)
        yield Event(min(now + stay(), seconds), name, Act.LEAVE)


def _spells(
    draw: random.Random, name: str, begin: float, end: float, on_s: float, off_s: float, is_on: bool
) -> Iterator[Event]:
    yield Event(begin, name, Act.ARRIVE)
    now = begin
    while now < end:
        if is_on:
            yield Event(now, name, Act.ACTIVE)
        now += draw.lognormvariate(math.log(on_s if is_on else off_s), 0.7)
        if is_on and now < end:
            yield Event(now, name, Act.IDLE)
        is_on = not is_on
    yield Event(end, name, Act.LEAVE)


def _trace(name: str, events: Iterable[Event], seconds: float) -> Trace:
    return Trace(name, tuple(sorted(events, key=lambda e: (e.time_s, _ORDER[e.act], e.session))), seconds)
