"""Breaks a real deployment over and over while clients stream from it, and counts what they miss.

    python -m tests.chaos.run --faults 200 --seed 1 --json chaos.json

Real processes on one machine: a Ray cluster of a head and three nodes, two gateways, a valkey server, checkpoints in a
folder that all nodes see; a client for each workload, which streams without end and connects again wherever it can.
Times that are waited for are those of an idle machine (`processes.Stopwatch`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import random
import shutil
import signal
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riverrun.models.base import one_line

from .checker import Faults, seconds_to_recover
from .faults import (
    Blow,
    DamageBlob,
    Fault,
    FillBlobs,
    FreezeNode,
    KillActor,
    KillController,
    KillGateway,
    KillHead,
    KillModel,
    KillNode,
    RestartStore,
    RestartStoreThenGateway,
    StoreAwayAndActor,
)
from .migrating import STEPS, WHO, KillInMigration
from .processes import Stopwatch, adopt_orphans, end_all
from .report import table
from .services import Setup
from .viewers import Audience, Viewer, undisturbed
from .workloads import Workload, made_up, picked, short, tables
from .world import NotNow, World

log = logging.getLogger("chaos")
RECOVER_S = 120.0
TRIES = 5
CROWD = 4
"""Clients of each workload, where steps are shared: two on each actor of a model."""

NEW_FRAMES = 32
"""So many must come after a fault before a client counts as served again: more than can be under way."""

OFTEN: list[Fault] = [KillActor(), KillGateway(), KillNode(), DamageBlob("truncated"), DamageBlob("bit-flipped")]
EACH: list[Fault] = [
    FreezeNode(),
    KillModel(),
    KillController(),
    RestartStore("all"),
    RestartStore("nothing"),
    RestartStore("last"),
    RestartStoreThenGateway("nothing"),
    RestartStoreThenGateway("last"),
    StoreAwayAndActor(),
    FillBlobs(),
    KillHead(),
    *(KillInMigration(step, who) for step in STEPS for who in WHO),
]
SHORT: list[Fault] = [
    KillActor(),
    KillGateway(),
    KillNode(),
    KillInMigration("restore", "source"),
    RestartStore("last"),
    DamageBlob("bit-flipped"),
    KillInMigration("commit", "target"),
    RestartStore("nothing"),
]


@dataclass(frozen=True)
class Row:
    """One fault. seconds: until each victim had its next frame, by workload; infinite if it never came. note: of what
    was damaged, whether that was found out."""

    kind: str
    what: str
    is_warm: bool
    seconds: dict[str, float]
    note: str = ""


def workloads(options: argparse.Namespace) -> list[Workload]:
    """In batches several clients stream each, or there would be none to share a step with."""
    chosen = short() if options.short else [*made_up(), *tables()]
    works = picked(chosen, options.works)
    if not options.batched:
        return works
    return [
        dataclasses.replace(work, name=f"{work.name} #{n + 1}", seed=work.seed + 100 * n)
        for work in works
        for n in range(CROWD)
    ]


def schedule(chosen: Sequence[Fault] | None, rng: random.Random) -> Iterator[Fault]:
    """Without end: those chosen, in order; else every kind in turn, shuffled, the common ones twice as often."""
    while True:
        yield from chosen or rng.sample([*OFTEN, *OFTEN, *EACH], len(EACH) + 2 * len(OFTEN))


def _named(names: str) -> list[Fault]:
    """Those whose kinds hold one of `names`, which are parted by semicolons."""
    kinds = [name.strip() for name in names.split(";") if name.strip()]
    return [fault for fault in [*OFTEN, *EACH] if any(kind in fault.kind for kind in kinds)]


class Run:
    """One chaos run over a world that is in order."""

    def __init__(self, world: World, works: Sequence[Workload]) -> None:
        self.world, self.rows, self.skipped, self.broken = world, list[Row](), 0, ""
        addresses = [gateway.address for gateway in world.gateways]
        plain = [work for work in works if not work.steered]
        known = undisturbed(plain, addresses[0], world.setup.is_batched)
        world.viewers = [
            Viewer(work, known.get(work.name, work.computed), addresses, n % 2) for n, work in enumerate(works)
        ]
        self.audience = Audience(world.viewers)

    def break_things(self, faults: Iterator[Fault], count: int, seconds: float) -> None:
        end = time.monotonic() + seconds
        self._await_frames(self.world.viewers, time.monotonic())
        while len(self.rows) < count and time.monotonic() < end and not self._is_broken:
            fault = next(faults)
            if blow := self._inject(fault):
                self._note(fault.kind, blow)

    def _inject(self, fault: Fault) -> Blow | None:
        """None if it can't be made; what it needs is waited for a few times."""
        for again in range(TRIES):
            self.world.await_order(actors=2 if again else 1)
            try:
                return fault.inject(self.world)
            except NotNow as reason:
                log.info("%s: %s", fault.kind, reason)
            finally:
                self.world.mend()
        self.skipped += 1
        return None

    @property
    def _is_broken(self) -> bool:
        """Something was lost: going on would bury it."""
        return any(viewer.lost for viewer in self.world.viewers)

    def _note(self, kind: str, blow: Blow) -> None:
        self._await_frames(blow.victims, max(blow.at, blow.over))
        took = {v.workload.name: round(self._seconds(v, blow), 3) for v in blow.victims}
        found = [self.world.log_says(blob) for blob in blow.damaged]
        note = f"{sum(found)} of {len(found)} damaged blobs were wanted, and refused" if found else ""
        self.rows.append(Row(kind, blow.what, blow.is_warm, took, note))
        log.info("%3d %s: %s %s %s", len(self.rows), kind, blow.what, took, note)

    def _seconds(self, viewer: Viewer, blow: Blow) -> float:
        """Until it was served again; what came later belongs to no fault."""
        times = viewer.times[:]
        begin, end = bisect_right(times, blow.at), bisect_right(times, max(blow.at, blow.over))
        return seconds_to_recover(times[max(0, begin - NEW_FRAMES) : end + NEW_FRAMES], blow.at, viewer.chunk_s)

    def _await_frames(self, viewers: Sequence[Viewer], since: float) -> None:
        """Returns when each has had new frames, or has failed, or the time is up."""
        watch = Stopwatch()
        while watch.read() < RECOVER_S and any(not _is_served(v, since) for v in viewers) and not self._is_broken:
            self.audience.check()
            time.sleep(0.1)

    def totals(self) -> dict[str, Any]:
        viewers = self.world.viewers
        faults = sum((viewer.faults for viewer in viewers), Faults())
        return {
            **dataclasses.asdict(faults),
            "sessions": sum(v.sessions for v in viewers),
            "frames": sum(v.frames for v in viewers),
            "reconnects": sum(v.reconnects for v in viewers),
            "inputs sent again": sum(v.again for v in viewers),
            "largest difference": {v.workload.name: v.off for v in viewers if v.off},
            "openings refused and repeated": sum(len(v.refused) for v in viewers),
            "failures": [line for v in viewers for line in v.lost],
            "chunk_s": {v.workload.name: round(v.chunk_s, 3) for v in viewers},
        }


def _is_served(viewer: Viewer, since: float) -> bool:
    return len(viewer.times) >= NEW_FRAMES and viewer.times[-NEW_FRAMES] > since


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    begun = time.monotonic()
    works = workloads(options)
    blobs = "~/checkpoints" if options.own_blobs else str(folder / "blobs")
    world = World(folder, options.seed, Setup(folder, blobs, works, options.batched))
    chosen = SHORT if options.short else _named(options.only)
    it = Run(world, works)
    log.info("%d streams run after %.0f s", len(works), time.monotonic() - begun)
    try:
        it.break_things(schedule(chosen, world.random), options.faults, options.seconds)
    except (TimeoutError, RuntimeError) as error:  # what was counted up to here counts
        it.broken = one_line(str(error))
        log.error("the run can't go on: %s", error)
    finally:
        it.audience.stop(60)
    return {
        "rows": [dataclasses.asdict(row) for row in it.rows],
        "totals": it.totals(),
        "skipped": it.skipped,
        "broken": it.broken,
        "seed": options.seed,
        "batched": options.batched,
        "seconds": round(time.monotonic() - begun),
    }


def _told_to_end(*_: Any) -> None:
    """What was counted up to here is printed all the same."""
    raise RuntimeError("told to end")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=7200.0, help="no new fault after so long")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="", help="faults whose names hold one of these, parted by semicolons")
    parser.add_argument("--works", default="", help="workloads whose names hold one of these, parted by semicolons")
    parser.add_argument("--batched", action="store_true", help="steps are shared: numbers must be equal, pixels near")
    parser.add_argument("--short", action="store_true", help="the eight faults of `make test`")
    parser.add_argument("--own-blobs", action="store_true", help="each node keeps checkpoints for itself")
    parser.add_argument("--keep", action="store_true", help="leave the folder with logs and checkpoints")
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    adopt_orphans()
    signal.signal(signal.SIGTERM, _told_to_end)
    folder = Path(tempfile.mkdtemp(prefix="rrc-"))
    log.info("files of the run: %s", folder)
    try:
        result = run(options, folder)
    finally:
        end_all()
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    print(table(result))
    totals = result["totals"]
    return int(
        bool(totals["failures"]) or any(x == float("inf") for r in result["rows"] for x in r["seconds"].values())
    )


if __name__ == "__main__":
    sys.exit(main())
