"""The table of a chaos run."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any


def table(result: Mapping[str, Any]) -> str:
    """Markdown: a row by fault and by warm or cold, then what was missed in all."""
    totals, chunk_s = result["totals"], result["totals"]["chunk_s"]
    groups: dict[tuple[str, bool], list[Mapping[str, Any]]] = {}
    for row in result["rows"]:
        groups.setdefault((row["kind"], row["is_warm"]), []).append(row)
    lines = [
        "| fault | another ran | times | hit | p50 s | max s | p50 chunks | max chunks |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (kind, is_warm), rows in sorted(groups.items()):
        took = [(s, s / chunk_s[name] if chunk_s.get(name) else 0.0) for r in rows for name, s in r["seconds"].items()]
        figures = " | ".join(_pair([t[i] for t in took]) for i in (0, 1)) if took else "- | - | - | -"
        lines.append(f"| {kind} | {'yes' if is_warm else 'no'} | {len(rows)} | {len(took)} | {figures} |")
    return "\n".join([*lines, "", *_totals(result, totals)])


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
