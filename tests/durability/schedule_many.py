"""Many schedules on several processors, and what they have met."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field

from schedule import Outcome, play

BLOCK = 100
MOST_BAD = 25
"""After so many violations the rest is not played."""


@dataclass
class Tally:
    """What many schedules have met. seconds: of a processor that they took. lenient: schedules with an excuse."""

    played: int = 0
    frames: int = 0
    seconds: float = 0.0
    lenient: int = 0
    bad: dict[int, str] = field(default_factory=dict)
    struck: Counter = field(default_factory=Counter)
    excused: Counter = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        self.played, self.frames = self.played + 1, self.frames + outcome.frames
        self.struck += outcome.struck
        self.lenient += bool(outcome.excused)
        self.excused.update(outcome.excused)
        if outcome.fault:
            self.bad[outcome.seed] = outcome.fault

    def __iadd__(self, other: Tally) -> Tally:
        self.played, self.frames = self.played + other.played, self.frames + other.frames
        self.seconds, self.lenient = self.seconds + other.seconds, self.lenient + other.lenient
        self.bad |= other.bad
        self.struck, self.excused = self.struck + other.struck, self.excused + other.excused
        return self

    def table(self) -> str:
        """How much of everything was met."""
        each = 1000 * self.seconds / max(1, self.played)
        head = f"{self.played} schedules, {len(self.bad)} violations, {self.lenient} with an excuse, "
        head += f"{self.frames} frames, {each:.1f} ms each"
        return "\n".join([head, *_rows(self.struck), *_rows({f"excused: {k}": n for k, n in self.excused.items()})])


def _rows(counts: Mapping[str, int]) -> list[str]:
    return [f"  {count:>8}  {what}" for what, count in sorted(counts.items(), key=lambda each: -each[1])]


def play_block(block: range) -> Tally:
    """Some, one after the other."""
    tally, begun = Tally(), time.process_time()
    logging.disable(logging.CRITICAL)
    gc.disable()  # what a schedule leaves lies in cycles; they are looked for now and then, and nowhere else
    gc.collect()
    gc.freeze()
    for seed in block:
        tally.add(play(seed))
        if seed % 5 == 0:
            gc.collect()
    gc.unfreeze()
    gc.enable()
    tally.seconds = time.process_time() - begun
    return tally


def play_many(first: int, last: int, processes: int = 0) -> Tally:
    """All from `first` to `last`. Says at once of each that fails how to play it again, and now and then how long the
    rest may take. processes: 0: as many as there are processors."""
    blocks = [range(at, min(at + BLOCK, last + 1)) for at in range(first, last + 1, BLOCK)]
    tally, begun = Tally(), time.monotonic()
    with ProcessPoolExecutor(processes or os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        work = [pool.submit(play_block, block) for block in blocks]
        for done, each in enumerate(as_completed(work), start=1):
            tally += (part := each.result())
            for seed, fault in part.bad.items():
                print(f"seed {seed}: {fault[:300]}  (python tests/durability/schedule.py {seed})", flush=True)
            if done % 50 == 0:
                passed = time.monotonic() - begun
                left = passed / done * (len(blocks) - done)
                print(f"{tally.played} played in {passed:.0f} s, {len(tally.bad)} bad; {left:.0f} s to go", flush=True)
            if len(tally.bad) >= MOST_BAD:
                print(f"{len(tally.bad)} violations: the rest is not played", flush=True)
                pool.shutdown(cancel_futures=True)
                break
    return tally
