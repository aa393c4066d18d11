"""How the memory of each process of a service changes over a long stream, from samples taken on the way."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from riverrun.bench.service import Memory

JUDGED_CHUNKS = 1000
SETTLED, WINDOW, LATER, TWIN_CHUNKS = 300, 100, 150, 150


@dataclass(frozen=True)
class Plan:
    """chunks: whose memory counts. settled: the chunk from which nothing may grow. window: chunks that make a median.
    every: chunks between two samples. switch: chunks between two prompts. kept: the chunk whose State is kept.
    twin: chunks for which that State is stepped beside the late one, after `chunks`."""

    chunks: int
    settled: int
    window: int
    every: int
    switch: int
    kept: int
    twin: int

    @staticmethod
    def of(chunks: int, switch: int, settled: int = SETTLED) -> Plan:
        """From 1,000 chunks on: settled after 300, windows of 100, the State of 150 later, 150 chunks side by side."""
        part = min(1.0, chunks / JUDGED_CHUNKS)
        return Plan(
            chunks=chunks,
            settled=min(int(settled * part), chunks // 2),
            window=max(1, int(WINDOW * part)),
            every=max(1, chunks // 200),
            switch=switch,
            kept=max(1, int((settled + LATER) * part)),
            twin=max(2, int(TWIN_CHUNKS * part)),
        )

    @property
    def is_judged(self) -> bool:
        return self.chunks >= JUDGED_CHUNKS


@dataclass(frozen=True)
class Sample:
    """What was measured when chunk `chunk` had come. memory: by pid. keys: in the store."""

    chunk: int
    memory: Mapping[int, Memory]
    keys: int


@dataclass(frozen=True)
class Growth:
    """One process: MiB after the warm-up and at the end (medians), and the change in percent.

    widest_percent: the change of that window whose median is farthest from the first. own_percent: at the end, without
    shared pages (Ray's object store is mapped into every worker). ours: neither one of Ray's nor this benchmark, whose
    lists of what it measured grow. mib: of every sample, None where it was not there.
    """

    process: str
    ours: bool
    settled_mib: float
    end_mib: float
    percent: float
    widest_percent: float
    own_percent: float
    mib: list[float | None]


def growths(samples: Sequence[Sample], names: Mapping[int, str], plan: Plan) -> list[Growth]:
    """For each process that was there after the warm-up and at the end; ours first."""
    starts = [*range(plan.settled, plan.chunks - plan.window, plan.window), plan.chunks - plan.window]
    windows = [[s for s in samples if start <= s.chunk < start + plan.window] for start in starts]
    lasting = [pid for pid in names if pid in windows[-1][-1].memory and pid in windows[0][0].memory]
    found = [_growth(pid, names[pid], samples, windows) for pid in lasting]
    return sorted(found, key=lambda growth: not growth.ours)


def _growth(pid: int, name: str, samples: Sequence[Sample], windows: Sequence[Sequence[Sample]]) -> Growth:
    def medians(of: Callable[[Memory], int]) -> list[float]:
        there = [[s for s in window if pid in s.memory] for window in windows]
        return [statistics.median(of(s.memory[pid]) for s in window) for window in there if window]

    rss, own = medians(lambda m: m.rss), medians(lambda m: m.own)
    changes = [100 * (value / rss[0] - 1) for value in rss]
    return Growth(
        process=name,
        ours=not name.startswith(("ray ", "client")),
        settled_mib=rss[0] / 2**20,
        end_mib=rss[-1] / 2**20,
        percent=changes[-1],
        widest_percent=max(changes, key=abs),
        own_percent=100 * (own[-1] / own[0] - 1) if own[0] else 0.0,
        mib=[round(s.memory[pid].rss / 2**20, 2) if pid in s.memory else None for s in samples],
    )
