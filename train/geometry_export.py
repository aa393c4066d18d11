"""Writes a run's averaged weights where the package ships them, float16, with their sizes as JSON beside them.

python -m riverrun.train.geometry_export --run RUNDIR [--to FOLDER]
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from riverrun.train.export import folders, write
from riverrun.train.geometry import Recipe

NAME = "world-vggt"


def export(run: Path, to: Path) -> int:
    """Returns the step of the checkpoint that went out."""
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    write(state["average"], asdict(Recipe().shape), to / NAME)
    return int(state["step"])


def main() -> None:
    run, to = folders(__doc__)
    print(f"step {export(run, to)} -> {to / NAME}.safetensors")


if __name__ == "__main__":
    main()
