"""What users do, as lists of events: the workloads of peers.md §3.2, and traces in TurboServe's published form.

Every generator is a function of its seed alone.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path


class Act(StrEnum):
    ARRIVE = "arrive"
    ACTIVE = "active"
    IDLE = "idle"
    LEAVE = "leave"


@dataclass(frozen=True, order=True)
class Event:
    """A session that arrives wants nothing yet; it is active from its first `active` on."""

    time_s: float
    session: str
    act: Act


@dataclass(frozen=True)
class Trace:
    """seconds: how long it is. fails: (time, share of the workers) that die. chunk_s: media in a chunk. alone_ms: what
    a chunk takes with a worker to itself. state_bytes: of a session."""

    name: str
    events: tuple[Event, ...]
    seconds: float
    chunk_s: float = 0.75
    alone_ms: float = 62.34
    state_bytes: int = 500_000_000
    fails: tuple[tuple[float, float], ...] = ()

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


def demo(seed: int, seconds: float = 1800.0, rate: float = 0.955) -> Trace:
    """W1, the stand-in for TurboServe's public demo: arrivals modulated by phases, lognormal stays, spells and gaps."""
    draw = random.Random(f"demo:{seed}")
    found: list[Event] = []
    now, number = 0.0, 0
    phase_end, phase = 0.0, 1.0
    while now < seconds:
        if now >= phase_end:
            phase_end, phase = now + draw.uniform(60, 180), draw.uniform(0.5, 1.8)
        now += draw.expovariate(rate * phase)
        if now >= seconds:
            break
        stay = min(draw.lognormvariate(math.log(45), 1.2), 600)
        found += _spells(draw, f"s{number:06d}", now, min(now + stay, seconds), 6, 5, draw.random() < 0.6)
        number += 1
    return _trace("W1 demo", found, seconds)


def waves(seed: int) -> Trace:
    """W2, TeleFuser's: 4, 8, 12, 16, 8, 4 users, who come within 10 to 15 s of a phase's begin; the newest leave
    first."""
    draw = random.Random(f"waves:{seed}")
    found: list[Event] = []
    here: list[str] = []
    began, number = 0.0, 0
    for users, lasts in zip((4, 8, 12, 16, 8, 4), (45, 55, 55, 80, 50, 45), strict=True):
        spread = draw.uniform(10, 15)
        while len(here) < users:
            name, at = f"s{number:06d}", began + draw.uniform(0, spread)
            found += [Event(at, name, Act.ARRIVE), Event(at, name, Act.ACTIVE)]
            here.append(name)
            number += 1
        while len(here) > users:
            found.append(Event(began + draw.uniform(0, spread), here.pop(), Act.LEAVE))
        began += lasts
    return _trace("W2 waves", found, began, chunk_s=1.0)


def poisson(seed: int, gpus: int = 16, load: float = 1.0, seconds: float = 600.0) -> Trace:
    """W3, SlackServe's style: one stream a second for 16 workers, streams of 30 to 120 s, always active."""
    draw = random.Random(f"poisson:{seed}")
    found: list[Event] = []
    now = 0.0
    for number in range(1_000_000):
        now += draw.expovariate(load * gpus / 16)
        if now >= seconds:
            break
        name, ends = f"s{number:06d}", min(now + draw.uniform(30, 120), seconds)
        found += [Event(now, name, Act.ARRIVE), Event(now, name, Act.ACTIVE), Event(ends, name, Act.LEAVE)]
    return _trace(f"W3 poisson x{load:g}", found, seconds)


def bursts(seed: int, sessions: int = 24, seconds: float = 300.0) -> Trace:
    """W4, of the fork's five: two thirds come at once, some fall silent together, and come back together."""
    draw = random.Random(f"bursts:{seed}")
    found: list[Event] = []
    for number in range(sessions):
        name = f"s{number:06d}"
        at = draw.uniform(0, 2) if number % 3 else draw.uniform(0, 60)
        found += [Event(at, name, Act.ARRIVE), Event(at, name, Act.ACTIVE)]
        for begin in (90.0, 180.0):
            if draw.random() < 0.5:
                found += [Event(begin + draw.uniform(0, 1), name, Act.IDLE)]
                found += [Event(begin + 30 + draw.uniform(0, 1), name, Act.ACTIVE)]
    return _trace("W4 bursts", found, seconds, chunk_s=1.0)


def geometric(seed: int, rate: float = 0.5, chunks: float = 40.0, seconds: float = 600.0) -> Trace:
    """W5, vLLM-Omni's: Poisson arrivals, lengths geometric in chunks."""
    draw = random.Random(f"geometric:{seed}")
    found: list[Event] = []
    now = 0.0
    for number in range(1_000_000):
        now += draw.expovariate(rate)
        if now >= seconds:
            break
        name = f"s{number:06d}"
        ends = min(now + 0.75 * math.ceil(math.log(1 - draw.random()) / math.log(1 - 1 / chunks)), seconds)
        found += [Event(now, name, Act.ARRIVE), Event(now, name, Act.ACTIVE), Event(ends, name, Act.LEAVE)]
    return _trace("W5 geometric", found, seconds)


def failures(seed: int, seconds: float = 600.0) -> Trace:
    """W6, ours: the demo's users, and every minute a worker dies; once, a tenth of them."""
    base = demo(seed, seconds)
    deaths = tuple((60.0 * k, 0.0) for k in range(1, int(seconds // 60)))
    return replace(base, name="W6 failures", fails=tuple(sorted((*deaths, (seconds / 2 + 30, 0.1)))))


WORKLOADS: Mapping[str, Callable[[int], Trace]] = {
    "W1": demo,
    "W2": waves,
    "W3": poisson,
    "W4": bursts,
    "W5": geometric,
    "W6": failures,
}


def sized(trace: Trace, copies: float, seed: int = 0) -> Trace:
    """The same users so many times over, each copy moved in time by up to a minute; a part of one by thinning."""
    draw = random.Random(f"sized:{seed}")
    whole, part = int(copies), copies - int(copies)
    names = sorted({e.session for e in trace.events})
    found: list[Event] = []
    for copy in range(whole + (part > 0)):
        shift = draw.uniform(-60, 60) if copy else 0.0
        kept = {name for name in names if copy < whole or draw.random() < part}
        for e in trace.events:
            if e.session in kept:
                at = min(max(e.time_s + shift, 0.0), trace.seconds)
                found.append(Event(at, f"{copy}.{e.session}" if whole > 1 or part else e.session, e.act))
    return _trace(trace.name, found, trace.seconds, like=trace)


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
_ORDER = {act: place for place, act in enumerate((Act.LEAVE, Act.IDLE, Act.ARRIVE, Act.ACTIVE))}


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


def _trace(
    name: str, events: Iterable[Event], seconds: float, *, chunk_s: float = 0.75, like: Trace | None = None
) -> Trace:
    ordered = tuple(sorted(events, key=lambda e: (e.time_s, _ORDER[e.act], e.session)))
    return replace(like, events=ordered) if like else Trace(name, ordered, seconds, chunk_s)
