"""What every benchmark ends with: a table to read, and a JSON file that says on which machine it was measured."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Cell = str | int | float | bool | None


@dataclass(frozen=True)
class Machine:
    """Where and with what a figure was measured. memory_gib: installed. threads: OMP_NUM_THREADS, empty if unset."""

    processor: str
    cores: int
    memory_gib: float
    gpu: str
    system: str
    python: str
    torch: str
    ray: str
    threads: str
    load: float


def machine() -> Machine:
    """The facts of this machine. Asks the driver's files for the GPU, so that no benchmark must import torch."""
    return Machine(
        processor=_first(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        gpu=", ".join(_first(path, "Model") for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        torch=importlib.metadata.version("torch"),
        ray=importlib.metadata.version("ray"),
        threads=os.environ.get("OMP_NUM_THREADS", ""),
        load=round(os.getloadavg()[0], 2),
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table in Markdown whose columns also line up in a terminal; numbers stand to the right."""
    texts = [[_text(cell) for cell in row] for row in rows]
    widths = [max(len(column), 3, *(len(row[i]) for row in texts)) for i, column in enumerate(columns)]
    right = [bool(rows) and all(_is_number(row[i]) or row[i] is None for row in rows) for i in range(len(columns))]

    def line(cells: Sequence[str]) -> str:
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = "|".join("-" * (w + 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True))
    return "\n".join([line(columns), f"|{rule}|", *map(line, texts)])


def tables(columns: Mapping[str, Mapping[str, str]], figures: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A table for each part that is among the figures. columns: by part, the key of each column's figure."""
    found = []
    for part in (part for part in columns if part in figures):
        rows = [[row[key] for key in columns[part].values()] for row in figures[part]]
        found.append(table(list(columns[part]), rows))
    return "\n\n".join(found)


def write_json(path: str | Path, benchmark: str, settings: Mapping[str, Any], figures: Mapping[str, Any]) -> None:
    """Writes {"benchmark", "version", "measured", "machine", "settings", "figures"}; makes the folder if need be."""
    document = {
        "benchmark": benchmark,
        "version": importlib.metadata.version("riverrun"),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": dataclasses.asdict(machine()),
        "settings": dict(settings),
        "figures": dict(figures),
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")


def _first(path: Path, key: str) -> str:
    """The value of the first `key: value` line of a file; empty if there is none."""
    if not path.is_file():
        return ""
    pairs = (line.partition(":") for line in path.read_text().splitlines())
    return next((value.strip() for name, _, value in pairs if name.strip() == key), "")


def _is_number(cell: Cell) -> bool:
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:.3g}" if abs(cell) < 1 else f"{cell:,.1f}"
    return f"{cell:,}" if isinstance(cell, int) else cell
