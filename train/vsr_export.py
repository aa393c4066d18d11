"""Writes a super-resolution run's weights where the package ships them, one file a part: safetensors in float16, with
the sizes as JSON beside them.

python -m riverrun.train.vsr_export --run RUNDIR [--to FOLDER]
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from riverrun.models.snapshot import below
from riverrun.train.export import folders, write
from riverrun.train.vsr_model import Sizes, TinyVSR, newest

NAME = "world-vsr"


def main() -> None:
    export(*folders(__doc__))


def export(run: Path, to: Path) -> None:
    """The averaged weights of the newest part; of the VAE only the encoder, all that the stage reads."""
    sizes = Sizes()
    torch.manual_seed(0)
    model = TinyVSR(sizes)
    model.load_state_dict(newest(run))
    tensors = model.state_dict()
    for part, config in (("dit", sizes.dit), ("guidance", sizes.swin), ("decoder", sizes.decoder), ("vae", sizes.vae)):
        mine = below(tensors, f"{part}.")
        if part == "vae":
            mine = {name: t for name, t in mine.items() if name.startswith(("encoder.", "conv1."))}
        write(mine, asdict(config), to / f"{NAME}-{part}")


if __name__ == "__main__":
    main()
