"""Writes a run's averaged weights where the package ships them, float16, with their sizes as JSON beside them.

python -m riverrun.train.geometry_export --run RUNDIR [--to FOLDER]
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import torch

from riverrun.train.export import FOLDER, write
from riverrun.train.geometry import Recipe

NAME = "world-vggt"


def export(run: Path, to: Path) -> int:
    """Returns the step of the checkpoint that went out."""
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    write(state["average"], asdict(Recipe().shape), to / NAME)
    return int(state["step"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--to", type=Path, default=FOLDER)
    args = parser.parse_args()
    args.to.mkdir(parents=True, exist_ok=True)
    print(f"step {export(args.run, args.to)} -> {args.to / NAME}.safetensors")


if __name__ == "__main__":
    main()
