"""What a client must have been given, and how long it waited after a fault. Pure."""

from __future__ import annotations

import hashlib
import itertools
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np

HICCUP = 2.0


@dataclass(frozen=True)
class Got:
    """One frame as a client got it. at: seconds of the monotonic clock; sha: of its bytes. off: its largest difference
    from the undisturbed run's, where that is asked for."""

    number: int
    pts: int
    revision: int
    sha: str
    at: float
    chunk: int = 0
    port: str = "frames"
    off: float = 0.0


Expected = Callable[[Got], tuple[int, int, str]]
"""(pts, revision, sha) of a frame in the undisturbed run."""


@dataclass(frozen=True)
class Faults:
    """Of the frames of one session. lost, duplicated, disordered: by number. changed: pts, revision or bytes are not
    those of the undisturbed run."""

    lost: int = 0
    duplicated: int = 0
    disordered: int = 0
    changed: int = 0

    def __add__(self, other: Faults) -> Faults:
        return Faults(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def judge(
    got: Sequence[Got], expected: Expected, frames: int | None = None, ports: Sequence[str] = ("frames",)
) -> Faults:
    """frames: so many there must be on each of `ports`; None: the session was still running, so those up to the last
    one."""
    return sum((_judge([g for g in got if g.port == port], expected, frames) for port in ports), Faults())


def _judge(got: Sequence[Got], expected: Expected, frames: int | None) -> Faults:
    numbers = [each.number for each in got]
    due = range(frames if frames is not None else max(numbers, default=-1) + 1)
    counts = Counter(numbers)
    return Faults(
        lost=sum(number not in counts for number in due),
        duplicated=sum(count - 1 for count in counts.values()),
        disordered=sum(b < a for a, b in itertools.pairwise(numbers)),
        changed=sum((each.pts, each.revision, each.sha) != expected(each) for each in got)
        + sum(number not in due for number in counts),
    )


def first_changed(got: Sequence[Got], expected: Expected) -> str:
    """The first frame that is not as it should be, in a line; empty if there is none."""
    for each in got:
        if (each.pts, each.revision, each.sha) != (due := expected(each)):
            said = (each.pts, each.revision, each.sha[:8])
            return f"{each.port} frame {each.number}: {said}, should be {(*due[:2], due[2][:8])}"
    return ""


def sha(pixels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def seconds_to_recover(times: Sequence[float], fault: float, usual: float) -> float:
    """From the fault to the end of the longest silence that ended after it: frames that were under way when it struck
    don't count as recovered. No silence beyond `HICCUP` times the usual one: to the next frame. Infinite if none came.

    usual: time between two chunks.
    """
    after = [at for at in times if at > fault]
    if not after:
        return float("inf")
    before = max((at for at in times if at <= fault), default=fault)
    gaps = [(b - a, b) for a, b in itertools.pairwise([before, *after])]
    longest, ended = max(gaps, key=lambda gap: gap[0])
    return (ended if longest > HICCUP * usual else after[0]) - fault


def chunk_seconds(got: Sequence[Got]) -> float:
    """The median time between two chunks."""
    firsts = [b.at for a, b in itertools.pairwise(got) if a.chunk != b.chunk]
    return statistics.median(b - a for a, b in itertools.pairwise(firsts)) if len(firsts) > 1 else 0.0
