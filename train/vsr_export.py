"""Writes a super-resolution run's weights where the package ships them, one file a part: safetensors in float16, with
the sizes as JSON beside them.

python -m riverrun.train.vsr_export --run RUNDIR [--to FOLDER]
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import torch

from riverrun.train.export import FOLDER, write
from riverrun.train.vsr_model import Sizes, TinyVSR, newest

NAME = "world-vsr"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--to", type=Path, default=FOLDER)
    args = parser.parse_args()
    args.to.mkdir(parents=True, exist_ok=True)
    export(args.run, args.to)


def export(run: Path, to: Path) -> None:
    """The averaged weights of the newest part; of the VAE only the encoder, all that the stage reads."""
    sizes = Sizes()
    torch.manual_seed(0)
    model = TinyVSR(sizes)
    model.load_state_dict(newest(run))
    tensors = model.state_dict()
    for part, config in (("dit", sizes.dit), ("guidance", sizes.swin), ("decoder", sizes.decoder), ("vae", sizes.vae)):
        mine = {name.removeprefix(f"{part}."): t for name, t in tensors.items() if name.startswith(f"{part}.")}
        if part == "vae":
            mine = {name: t for name, t in mine.items() if name.startswith(("encoder.", "conv1."))}
        write(mine, asdict(config), to / f"{NAME}-{part}")


if __name__ == "__main__":
    main()
