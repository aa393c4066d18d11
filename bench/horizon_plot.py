"""Draws what `bench/horizon` measured: memory of each process, and the time of each chunk, over the whole stream.

`python -m riverrun.bench.horizon_plot RUN.json [RUN.json …] --to FILE`: a column a run. Needs the extra `viz`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt

SMOOTHED = 25
"""Chunks whose median makes the line of the time of a chunk."""


def plot(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A picture of `runs`, each with "settings" and "figures" as `horizon --json` writes them."""
    figure, axes = plt.subplots(
        2, len(runs), figsize=(6.5 * len(runs), 7), squeeze=False, height_ratios=(2, 1), layout="constrained"
    )
    for column, run in enumerate(runs):
        _memory(axes[0, column], run)
        _time(axes[1, column], run)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _memory(axis: Any, run: Mapping[str, Any]) -> None:
    settings, figures = run["settings"], run["figures"]
    chunks = figures["series"]["chunk"]
    for growth in figures["growth"]:
        mib = [float("nan") if value is None else value for value in growth["mib"]]
        if growth["ours"]:
            axis.plot(chunks, mib, label=f"{growth['process']} {growth['percent']:+.2f} %")
        else:
            axis.plot(chunks, mib, color="0.75", linewidth=0.8, zorder=0)
    if everything := figures.get("everything"):
        axis.plot(everything["chunk"], everything["mib"], color="crimson", label="the actor, keeping everything")
    axis.plot([], [], color="0.75", label="Ray's own processes, and the client")
    axis.axvline(settings["settled"], color="0.5", linestyle=":")
    axis.set(title=f"{settings['model']}: {settings['chunks']} chunks", ylabel="resident memory, MiB")
    axis.set_ylim(0, 1.4 * axis.get_ylim()[1])  # room for the legend
    axis.legend(fontsize="small", ncols=2, loc="upper right")


def _time(axis: Any, run: Mapping[str, Any]) -> None:
    times = run["figures"]["series"]["chunk_ms"]
    smooth = [statistics.median(times[max(0, i - SMOOTHED + 1) : i + 1]) for i in range(len(times))]
    axis.plot(smooth, label="bounded")
    if everything := run["figures"].get("everything"):
        axis.plot(everything["chunk"], everything["chunk_ms"], color="crimson", label="keeping everything")
        axis.legend(fontsize="small")
    else:
        axis.set_ylim(0, 4 * statistics.median(smooth))  # what else the machine did would dwarf the rest
    axis.set(xlabel="chunk", ylabel=f"ms a chunk at the client\n(median of {SMOOTHED})")


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the runs and draws them."""
    parser = argparse.ArgumentParser(prog="python -m riverrun.bench.horizon_plot", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="what `horizon --json` wrote")
    parser.add_argument("--to", required=True, type=Path, help="the picture")
    options = parser.parse_args(argv)
    plot([json.loads(path.read_text()) for path in options.runs], options.to)


if __name__ == "__main__":
    main()
