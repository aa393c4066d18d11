"""Draws what `bench.sim --json` and `bench.decisions --json` wrote. Needs the extra `viz`.

`python -m riverrun.bench.sim_plot RUN.json [RUN.json …] --to FOLDER`: sim_grid.png, sim_pareto.png, decisions.png, as
far as the runs have them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt

Row = Mapping[str, Any]
MARKS = {"B1": "s", "B2": "D", "B3": "^", "B4": "v", "B5": "P", "B6": "X", "B8": "<", "ours": "o", "ours-scale": "*"}


def grid(rows: Sequence[Row], path: Path) -> None:
    """A panel for each workload: worst chunk latency against cost, a point for each policy and size."""
    days = list(dict.fromkeys(row["workload"] for row in rows))
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    figure, axes = plt.subplots(2, 3, figsize=(14, 8), layout="constrained")
    for axis, day in zip(axes.flat, days, strict=False):
        for number, policy in enumerate(policies):
            found = [row for row in rows if row["workload"] == day and row["policy"] == policy]
            axis.errorbar(
                [100 * row["share_cost"]["mean"] for row in found],
                [row["worst"]["mean"] for row in found],
                yerr=[row["worst"]["spread"] for row in found],
                fmt=MARKS[policy],
                color="black" if policy == "ours" else f"C{number}",
                label=policy,
                alpha=0.8,
                markersize=9 if policy == "ours" else 6,
            )
        axis.set(title=day, xlabel="GPU time, % of a fixed cluster", ylabel="worst chunk, ms")
        axis.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=8)
    sizes = ", ".join(str(size) for size in dict.fromkeys(row["gpus"] for row in rows))
    figure.suptitle(f"a point for each of {sizes} GPUs; lower left is better")
    _save(figure, path)


def pareto(rows: Sequence[Row], path: Path) -> None:
    """Worst chunk latency, and what was not admitted at once, against cost, as each policy is given more or less."""
    figure, axes = plt.subplots(1, 3, figsize=(16, 5), layout="constrained")
    families = list(dict.fromkeys(row["policy"].partition(" ")[0] for row in rows))
    for number, family in enumerate(families):
        found = [row for row in rows if row["policy"].partition(" ")[0] == family]
        found.sort(key=lambda row: row["cost"]["mean"])
        cost = [100 * row["share_cost"]["mean"] for row in found]
        ours = family.startswith("ours")
        style = {"marker": MARKS[family], "label": family, "color": "black" if family == "ours" else f"C{number}"}
        for axis, key, scale in zip(axes, ("worst", "p95", "share_unplaced"), (1, 1, 100), strict=True):
            values = [scale * row[key]["mean"] for row in found]
            axis.plot(cost, values, **style, linewidth=2 if ours else 1, alpha=0.85)
    for axis, label in zip(
        axes, ("worst chunk, ms", "95th percentile of chunks, ms", "active time without a place, %"), strict=True
    ):
        axis.set(xlabel="GPU time, % of a fixed cluster", ylabel=label)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    _save(figure, path)


def decisions(rows: Sequence[Row], path: Path) -> None:
    """How a decision's time grows with the sessions."""
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    axis.loglog([row["sessions"] for row in rows], [row["ms"] for row in rows], "o-", label="one decision")
    for row in rows:
        if row["limit_ms"]:
            axis.plot(row["sessions"], row["limit_ms"], "v", color="C3")
            limit = f"limit {row['limit_ms']:g} ms "
            axis.annotate(limit, (row["sessions"], row["limit_ms"]), fontsize=8, ha="right", va="center")
    axis.set(xlabel="sessions", ylabel="ms", title="one whole decision: places, workers, moves")
    axis.grid(alpha=0.3, which="both")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the runs and draws them."""
    parser = argparse.ArgumentParser(prog="python -m riverrun.bench.sim_plot", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="what `--json` wrote")
    parser.add_argument("--to", required=True, type=Path, metavar="FOLDER", help="where the pictures go")
    options = parser.parse_args(argv)
    for path in options.runs:
        figures = json.loads(path.read_text())["figures"]
        for part, draw, name in (
            ("grid", grid, "sim_grid.png"),
            ("pareto", pareto, "sim_pareto.png"),
            ("decisions", decisions, "decisions.png"),
        ):
            if part in figures:
                draw(figures[part], options.to / name)


if __name__ == "__main__":
    main()
