"""Which chunk is made next, and which sessions share a step: by playout slack.

Slack is what the viewer has left to play, less what has to be done before the next chunk is there: seconds until the
picture stands still. It is negative for one that stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ready:
    """A session whose next chunk can be made. lead_s: media made and not yet played. key: sessions with an equal one
    may share a step. since: when it became ready. is_new: it has shown nothing yet, and counts as most urgent."""

    id: str
    lead_s: float
    key: object
    since: float
    is_new: bool = False

    def urgency(self, ample_s: float = math.inf) -> tuple[float, float, str]:
        """Sorts the most urgent first."""
        lead_s = -math.inf if self.is_new and ample_s == math.inf else min(self.lead_s, ample_s)
        return (lead_s, self.since, self.id)


def order(ready: Sequence[Ready], ample_s: float = math.inf) -> list[Ready]:
    """Least slack first; then who has waited longest. Among those with `ample_s` or more only the waiting counts: who
    is far ahead of its viewer is not overtaken again and again by who is less far, and not by who is new."""
    return sorted(ready, key=lambda each: each.urgency(ample_s))


def batch(
    ready: Sequence[Ready],
    batch_ms: Callable[[int], float],
    spend: float = 0.5,
    most: int = 64,
    ample_s: float = math.inf,
    least_saving: float = 0.0,
) -> list[Ready]:
    """The most urgent session and those that share its step with it. ample_s: see `order`.

    batch_ms: how long a step of n takes, as far as is known. One more is taken while the step stays within the share
    `spend` of the slack of the most urgent one, and takes less time for each than alone: a late session, which has no
    slack, is held up only by others that are late, or by all with an endless spend. Under overload all are late and go
    together, since that makes most chunks. A step that would save less than the share `least_saving` of each chunk's
    time is not shared: all would wait for each other and come back at once.
    """
    if not ready:
        return []
    first, *others = order(ready, ample_s)
    if not others:  # most steps of a service: nothing to be asked of what was measured
        return [first]
    alone = batch_ms(1)
    slack_ms = 0.0 if first.is_new else max(first.lead_s * 1000, 0.0)
    limit_ms = math.inf if spend == math.inf else max(spend * slack_ms, alone)
    chosen = [first]
    for other in others:
        if len(chosen) == most:
            break
        if other.key != first.key:
            continue
        took = batch_ms(len(chosen) + 1)
        is_held_up = took > limit_ms and (slack_ms > 0 or other.lead_s > 0)
        if is_held_up or took / (len(chosen) + 1) > alone:
            break
        chosen.append(other)
    return chosen if batch_ms(len(chosen)) / len(chosen) <= (1 - least_saving) * alone else [first]


@dataclass(frozen=True)
class Pace:
    """A session ahead of its viewer by more than `park_s` is left alone until the lead is below `wake_s`."""

    park_s: float = 1.0
    wake_s: float = 0.4

    def is_parked(self, lead_s: float, was_parked: bool) -> bool:
        return lead_s > (self.wake_s if was_parked else self.park_s)
