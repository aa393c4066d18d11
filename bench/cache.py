"""What does a cache save, and does it go on saving as a stream grows? Every method against computing it all again.

`python -m riverrun.bench.cache [--quick] [--method NAME] [--json FILE]`

One chunk (image, frame, text) is timed the method's own way and as it would be without its cache, at several lengths
of stream: median of repeats, the ways taking turns, so that a busy machine slows all of them alike. Beside the times
stand the FLOPs of each way, counted while it runs, and what it keeps between chunks. Networks are small and have
random weights, but for the text strategies, whose gain depends on what a model has learnt: those run on the small
trained models of the tests, and are left out where these aren't there.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from riverrun.bench.cache_plan import Case, Plan, Way
from riverrun.bench.cache_text import jacobi, locret, wedlm
from riverrun.bench.cache_video import ca2vdm, easycontrol, infinitevggt, infvsr, longlive, vidgpt
from riverrun.bench.report import Cell, table, write_json
from riverrun.models.generation.ca2vdm_flops import clip_call, denoise_call, write_call
from riverrun.models.generation.ca2vdm_net import STDiTConfig
from riverrun.models.wan.sizes import human

METHODS: Mapping[str, Callable[[Plan], Iterable[Case] | str]] = {
    "ca2vdm": ca2vdm,
    "vidgpt": vidgpt,
    "longlive": longlive,
    "infvsr": infvsr,
    "easycontrol": easycontrol,
    "infinitevggt": infinitevggt,
    "jacobi": jacobi,
    "wedlm": wedlm,
    "locret": locret,
}
"""Of each: its cases, or why there are none."""
QUICK = Plan(repeats=3, width=2, depth=2, steps=4, chunks=(1, 4, 12))
FULL = Plan(repeats=5, width=4, depth=3, steps=4, chunks=(1, 2, 4, 8, 16))


@dataclass(frozen=True)
class Figure:
    """One row: `way` of a method at a length of stream. held: bytes kept between chunks."""

    method: str
    at: str
    way: str
    ms: float
    flops: int
    passes: int
    held: int


def attention_flops(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any) -> int:
    """Of the fused kernel, which the counter of some versions of torch leaves out; shapes [B, H, T, D]."""
    batch, heads, queries, dim = q
    return 2 * batch * heads * queries * k[2] * (dim + v[3])


FUSED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops}


def counted(way: Way) -> tuple[int, int]:
    """(FLOPs, passes through the network) of one run; 2 x multiply-accumulates of matrix products and convolutions."""
    thing = way.fresh()
    with FlopCounterMode(display=False, custom_mapping=FUSED) as counter:
        passes = way.run(thing)
    return counter.get_total_flops(), passes


@torch.no_grad()
def measure(case: Case, repeats: int) -> list[Figure]:
    """Every way of a case, taking turns. Counting comes first, and warms up."""
    counts = [counted(way) for way in case.ways]
    took: list[list[float]] = [[] for _ in case.ways]
    for _ in range(repeats):
        for way, times in zip(case.ways, took, strict=True):
            thing = way.fresh()
            began = time.perf_counter()
            way.run(thing)
            times.append(1000 * (time.perf_counter() - began))
    return [
        Figure(case.method, case.at, way.name, statistics.median(times), *count, way.held)
        for way, times, count in zip(case.ways, took, counts, strict=True)
    ]


def show(figures: Sequence[Figure]) -> str:
    """A row a figure; ratios are to the first way of the same case."""
    rows: list[list[Cell]] = []
    first = None
    for figure in figures:
        is_first = first is None or (figure.method, figure.at) != (first.method, first.at)
        first = figure if is_first or first is None else first
        ratios = (figure.ms / first.ms, figure.flops / first.flops)
        heading: list[Cell] = [figure.method, figure.at] if is_first else ["", ""]
        held = human(figure.held) if figure.held else "-"
        cells: list[Cell] = [figure.ms, _times(ratios[0]), figure.flops / 1e9, _times(ratios[1]), figure.passes, held]
        rows.append([*heading, figure.way, *cells])
    return table(["method", "after", "way", "ms", "time", "GFLOP", "FLOPs", "passes", "kept"], rows)


def _times(ratio: float) -> str:
    return f"{ratio:.2f} x"


def released_ratio(prefix_frames: int, chunks: int = 10, chunk: int = 8, past: int = 41, steps: int = 100) -> float:
    """FLOPs of bidirectional-extendable over Ca2-VDM's at XL/2 with captions, for a video of so many chunks.

    The setting of the paper's 130.1 s against 52.1 s (one frame given, at most `past` seen). The bidirectional
    network has no prefix attention; prefix_frames: Ca2-VDM's.
    """
    config = STDiTConfig(caption_channels=4096, prefix_frames=prefix_frames, mask_channel=False)
    plain = replace(config, prefix_frames=0)
    ours = theirs = 0
    for number in range(chunks):
        before = min(1 + chunk * number, past)
        ours += steps * denoise_call(config, before, chunk, config.text_len).total
        ours += write_call(config, before, chunk, config.text_len).total
        theirs += steps * clip_call(plain, before, chunk, config.text_len, timestep_per_frame=False).total
    return theirs / ours


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m riverrun.bench.cache", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller networks, fewer lengths and repeats")
    parser.add_argument("--method", choices=METHODS, action="append", help="only this one; may be repeated")
    parser.add_argument("--json", metavar="FILE", help="write the figures and the machine's facts there")
    options = parser.parse_args(argv)
    plan = QUICK if options.quick else FULL
    figures, missing = list[Figure](), list[str]()
    for method in options.method or METHODS:
        print(f"{method} ...", file=sys.stderr)
        cases = METHODS[method](plan)
        if isinstance(cases, str):
            missing.append(f"{method}: not measured, {cases}")
            continue
        for case in cases:
            figures += measure(case, plan.repeats)
    print(show(figures))
    ratios = {frames: released_ratio(frames) for frames in (0, 3)}
    print("".join(f"\n{line}" for line in (*missing, _released(ratios))))
    if options.json:
        found = {"ways": [asdict(figure) for figure in figures], "missing": missing}
        found["released_flop_ratio"] = {str(frames): ratio for frames, ratio in ratios.items()}
        write_json(options.json, "cache", asdict(plan), found)
    return 0


def _released(ratios: Mapping[int, float]) -> str:
    return (
        f"Ca2-VDM at released size, 80 frames: bidirectional-extendable takes {ratios[0]:.1f} x the FLOPs "
        f"({ratios[3]:.1f} x with prefix attention); by its paper 2.5 x the time, 130.1 s against 52.1 s."
    )


if __name__ == "__main__":
    sys.exit(main())
