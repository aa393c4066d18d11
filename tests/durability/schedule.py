"""Seeded schedules: one session from its opening to its end, while parties die, messages go astray and stores forget.

`python schedule.py SEED` plays one schedule and says what happened; `python schedule.py SEED SEED2` plays all from one
to the other, on all processors, and prints how much of everything was met. There is no wall clock in it: what is drawn
from a seed is the same each time, and so is what happens.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections import Counter
from dataclasses import dataclass, field

from schedule_describe import describe
from schedule_ledger import Excused, Violation
from schedule_loop import VirtualLoop, run
from schedule_show import Show

MOST_TURNS = 150_000


@dataclass
class Outcome:
    """Of one schedule. fault: what was violated, "" if nothing. excused: what happened in it that can't be helped.
    trace: a number that is the same if it ran the same. struck: what was met, by kind."""

    seed: int
    fault: str = ""
    excused: tuple[str, ...] = ()
    frames: int = 0
    trace: int = 0
    turns: int = 0
    struck: Counter = field(default_factory=Counter)


def play(seed: int) -> Outcome:
    """One schedule from its seed."""
    loop = VirtualLoop(MOST_TURNS)
    show = Show(seed, loop)
    outcome = Outcome(seed)
    try:
        run(show.play(), loop)
    except Excused as excuse:
        show.excused(str(excuse))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - whatever it is, the schedule has failed
        outcome.fault = str(error) if isinstance(error, Violation) else f"{type(error).__name__}: {error}"
        if log.isEnabledFor(logging.INFO):
            traceback.print_exception(error)
            print(describe(show))
    outcome.excused = tuple(show.excuses)
    outcome.frames = sum(show.viewer.received.values())
    outcome.trace, outcome.turns = show.world.trace, loop.turns
    outcome.struck = show.world.struck
    return outcome


log = logging.getLogger(__name__)


def main(first: int, last: int) -> int:
    """How many of them were violated."""
    if first < last:
        from schedule_many import play_many

        tally = play_many(first, last)
        print(tally.table())
        return len(tally.bad)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    outcome = play(first)
    print(outcome)
    return int(bool(outcome.fault))


if __name__ == "__main__":
    sys.exit(bool(main(int(sys.argv[1]), int(sys.argv[-1]))))
