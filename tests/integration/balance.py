"""Whether a service is back where it was: what a census counts, before and after."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from .conftest import eventually

SLACK = {"files": 12, "threads": 12}
"""Ray, gRPC, the store's client and each gateway's loop keep pools of them that grow a little with what was ever needed
at once: a loop's is of six threads on two cores, and there may be two."""

RESIDENT_SLACK = 64 << 20
"""Of a process; the States of thirty sessions are as much."""

Counts = dict[str, int]


def steady(counted: Callable[[], Counts]) -> Counts:
    """What is counted twice alike; {} if it changes."""
    first = counted()
    return first if counted() == first else {}


def grown(before: Counts, now: Counts, killed: int = 0) -> dict[str, tuple[int, int]]:
    """What there is more of than there was, as (before, now). killed: actors that were; for each of them a process that
    called it keeps one socket, unconnected and of the node's address, so Ray's: ours are of 127.0.0.1."""
    slack = {name: SLACK.get(name.rpartition(": ")[2], 0) if name.startswith("process") else 0 for name in now}
    slack |= {name: slack[name] + killed for name in slack if name.endswith(": files")}
    return {name: (before.get(name, 0), n) for name, n in now.items() if n > before.get(name, 0) + slack[name]}


def left_over(before: Counts, counted: Callable[[], Counts], killed: int = 0) -> dict[str, tuple[int, int]]:
    """What there is more of than before and does not go. killed: see `grown`."""
    left = before

    def is_back() -> bool:
        nonlocal left
        left = counted()
        return not grown(before, left, killed)

    with contextlib.suppress(AssertionError):  # what is left says more than that it did not go
        eventually(is_back)
    return grown(before, left, killed)
