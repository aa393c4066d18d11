"""The table of a chaos run, or of several.

python -m tests.chaos.report one.json two.json
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def table(*results: Mapping[str, Any]) -> str:
    """Markdown: a row by fault and by warm or cold, then what was missed in each run. Times in chunks are by the usual
    time between two of the same client in the same run."""
    groups: dict[tuple[str, bool], list[list[tuple[float, float]]]] = {}
    for result in results:
        for row in result["rows"]:
            took = _took(row["seconds"], result["totals"]["chunk_s"])
            groups.setdefault((row["kind"], row["is_warm"]), []).append(took)
    lines = [
        "| fault | another ran | times | hit | p50 s | max s | p50 chunks | max chunks |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (kind, is_warm), each in sorted(groups.items()):
        took = [time for times in each for time in times]
        figures = " | ".join(_pair([t[i] for t in took]) for i in (0, 1)) if took else "- | - | - | -"
        lines.append(f"| {kind} | {'yes' if is_warm else 'no'} | {len(each)} | {len(took)} | {figures} |")
    return "\n".join([*lines, *(line for result in results for line in ("", *_totals(result, result["totals"])))])


def _took(seconds: Mapping[str, float], chunk_s: Mapping[str, float]) -> list[tuple[float, float]]:
    """Of each client that was hit, in seconds and in chunks."""
    return [(s, s / chunk_s[name] if chunk_s.get(name) else 0.0) for name, s in seconds.items()]


def _pair(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} | {max(values):.2f}"


def _totals(result: Mapping[str, Any], totals: Mapping[str, Any]) -> list[str]:
    chunks = ", ".join(f"{name} {seconds * 1000:.0f} ms" for name, seconds in totals["chunk_s"].items())
    lines = [
        f"{len(result['rows'])} faults in {result['seconds']} s, seed {result['seed']}; {totals['sessions']} sessions, "
        f"{totals['frames']} frames, {totals['reconnects']} reconnects.",
        f"Frames lost {totals['lost']}, duplicated {totals['duplicated']}, out of order {totals['disordered']}, "
        f"unlike the undisturbed run {totals['changed']}; sessions lost {len(totals['failures'])}.",
        f"Inputs that clients sent again {totals['inputs sent again']}.",
        f"Time between chunks: {chunks}.",
    ]
    if result["batched"]:
        most = max(totals["largest difference"].items(), key=lambda item: item[1], default=("none", 0.0))
        lines.append(f"Steps were shared; largest difference of a pixel or value {most[1]:g} ({most[0]}).")
    if result["broken"]:
        lines.append(f"The run could not go on: {result['broken']}")
    return [*lines, *(f"- {failure}" for failure in totals["failures"])]


if __name__ == "__main__":
    print(table(*(json.loads(Path(path).read_text()) for path in sys.argv[1:])))
