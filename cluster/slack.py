"""Which chunk is made next, which sessions share a step, and when one that is ahead asks again: by playout slack.

Slack is what the viewer has left to play, less what has to be done before the next chunk is there: seconds until the
picture stands still. It is negative for one that stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from riverrun.cluster.fair import Used

SPEND = 0.75
"""Of the most urgent session's slack, what its step may take when others share it."""

LONGEST = 1.5
"""Of a step of the most that may share one: a chunk that would take longer, its wait included, is made by fewer."""

LEAST_SAVING = 0.05
"""Of each chunk's time: a step that would save less is not shared, since all would wait for each other and come back at
once. Well below what batching gives where it gives something: the noise of what was measured must not end it."""

PLENTY_S = 6.0
"""Who has more left than that goes after all others: it reads as fast as it can, and nobody watches it at 1x. More than
a session keeps that waits for its viewer."""

PATIENCE_S = 2.0
"""What a viewer that has seen nothing yet counts as having left when its first step is asked for: a first picture is
waited for more gladly than one that stands, but not without end."""


@dataclass(frozen=True)
class Ready:
    """A session whose next chunk can be made. lead_s: media made and not yet played; of one that has shown nothing yet
    what is left of `PATIENCE_S`. key: sessions with an equal one may share a step. waited_s: since it became ready.
    tenant: whose it is."""

    id: str
    lead_s: float
    key: object
    waited_s: float
    tenant: str = ""

    @property
    def is_late(self) -> bool:
        """Its viewer has nothing left to play."""
        return self.lead_s <= 0


def order(ready: Sequence[Ready]) -> list[Ready]:
    """Whose viewer stands first, the longest first; then by waiting; last who has plenty, by waiting too.

    Among those with something left only the waiting counts: who is far ahead of its viewer is not overtaken again and
    again by who is less far, as those are that have just come.
    """

    def rank(each: Ready) -> tuple[bool, float, bool, float, str]:
        return not each.is_late, min(each.lead_s, 0.0), each.lead_s > PLENTY_S, -each.waited_s, each.id

    return sorted(ready, key=rank)


def pick(
    ready: Sequence[Ready], used: Used, batch_ms: Callable[[int], float], most: int, spend: float = SPEND
) -> list[Ready]:
    """A worker's next step: whose chunks are made in it. Empty where nobody is ready.

    used: what tenants have had of the worker. batch_ms: how long a step of n takes, as far as is known; 0 for not at
    all. most: the most that may share one. While every viewer has something left it is for who has waited longest.
    Others go along as long as that takes no more than the share `spend` of that one's slack; and, where one after the
    other they would not all be made in time, if it saves time. Its own chunk takes no longer than `LONGEST` by them.
    Under overload, where a viewer has nothing left, it is the turn of the tenant that has had least, whether its
    session is late or not; and all that are late share its step if they may and that saves time, since it makes most
    chunks.
    """
    if len(ready) < 2:  # most steps of a service: nothing to be asked of what was measured
        return list(ready)
    first, *others = order(ready)
    if not any(each.is_late for each in ready):
        in_time = all(each.lead_s * 1000 >= n * batch_ms(1) for n, each in enumerate((first, *others), 1))
        slack_ms = spend * first.lead_s * 1000 if in_time else math.inf
        longest_ms = LONGEST * (batch_ms(most) or math.inf) - first.waited_s * 1000
        return _shared(first, others, batch_ms, most, min(slack_ms, longest_ms))
    tenant = used.least({each.tenant for each in ready})
    turn = next(each for each in (first, *others) if each.tenant == tenant)
    late = [each for each in (first, *others) if each.is_late and each is not turn]
    return _shared(turn, late, batch_ms, most, math.inf)


def _shared(
    first: Ready, others: Sequence[Ready], batch_ms: Callable[[int], float], most: int, limit_ms: float
) -> list[Ready]:
    """`first` and as many as may share its step, while it takes no longer than `limit_ms` and less time for each than
    alone; by itself where that saves too little."""
    alike = [each for each in others if each.key == first.key]
    if not alike or most < 2:
        return [first]
    alone, count = batch_ms(1), 1
    while count < min(most, 1 + len(alike)):
        took = batch_ms(count + 1)
        if took > limit_ms or took / (count + 1) > alone:
            break
        count += 1
    saves = batch_ms(count) / count <= (1 - LEAST_SAVING) * alone
    return [first, *alike[: count - 1]] if saves else [first]


@dataclass(frozen=True)
class Pace:
    """A session ahead of its viewer by more than `park_s` is left alone until the lead is below `wake_s`."""

    park_s: float = 1.0
    wake_s: float = 0.4

    def is_parked(self, lead_s: float, was_parked: bool) -> bool:
        return lead_s > (self.wake_s if was_parked else self.park_s)


REST, WITHIN = 0.25, 0.5
"""Of a chunk's media time: see `rest_s`."""


def rest_s(chunk_s: float, took_s: float) -> float:
    """How long a session that fills its lead asks for nothing after a chunk of `chunk_s` seconds of media, which it was
    given `took_s` after it had asked.

    Sessions that have just come all fill their viewers' buffers at once, and each chunk waits for those of all others.
    Where they rest between two chunks, turns come to lie apart, and hardly any is waited for. No viewer stands for it:
    the next chunk comes sooner than this one is played. Under overload, where a chunk takes more than half the time it
    lasts, nobody rests: an actor's time is not left unused.
    """
    return REST * chunk_s if took_s <= WITHIN * chunk_s else 0.0
