"""What a grid found, as a picture: worst chunk latency against cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from riverrun.cluster.sim.grid import Result

MARKS = {"B1": "s", "B2": "D", "B3": "^", "B4": "v", "B5": "P", "B6": "X", "B8": "<", "ours": "o"}


def pareto(found: Sequence[Result], to: Path) -> None:
    """A panel for each workload and size; a point is a policy's mean, its bars the spread. Needs matplotlib (extra
    `viz`)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = list(dict.fromkeys((each.workload, each.gpus) for each in found))
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    figure, axes = pyplot.subplots(down, across, figsize=(4.6 * across, 3.6 * down), squeeze=False)
    policies = list(dict.fromkeys(each.policy for each in found))
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (workload, gpus) in zip(axes.flat, panels, strict=False):
        for each in (each for each in found if (each.workload, each.gpus) == (workload, gpus)):
            name = each.policy.partition(" ")[0]
            axis.errorbar(
                100 * each.share_cost.mean,
                each.worst.mean,
                xerr=100 * each.share_cost.spread,
                yerr=each.worst.spread,
                fmt=MARKS.get(name, "*"),
                color=f"C{policies.index(each.policy) % 10}",
                label=each.policy,
                alpha=0.85,
            )
        axis.set(title=f"{workload}, {gpus} GPUs", xlabel="GPU time, % of a fixed cluster", ylabel="worst chunk, ms")
        axis.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(to, dpi=110)
    pyplot.close(figure)
