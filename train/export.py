"""Writes a run's weights where the package ships them: safetensors in float16, with the sizes as JSON beside them.

python -m riverrun.train.export --run RUNDIR [--to FOLDER]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import riverrun.weights
from riverrun.models.snapshot import below
from riverrun.models.wan.vae import WanVAE
from riverrun.train.captions import build_tokenizer
from riverrun.train.data import load_codec
from riverrun.train.generator import TINY, TextEncoder
from riverrun.train.vae import half, inflate, tiny_config

FOLDER = Path(riverrun.weights.__file__).parent


def main() -> None:
    run, to = folders(__doc__)
    export_generator(run, to)
    export_vae(run, to)


def folders(about: str | None) -> tuple[Path, Path]:
    """The command line of every export: the run's folder, and where its weights go. about: the module's docstring."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--to", type=Path, default=FOLDER)
    args = parser.parse_args()
    args.to.mkdir(parents=True, exist_ok=True)
    return args.run, args.to


def export_generator(run: Path, to: Path) -> None:
    """DiT, text encoder and tokenizer, from the distilled weights if there are any, else the averaged ones."""
    distilled, checkpoint = run / "distilled.pt", run / "checkpoint.pt"
    state = torch.load(distilled if distilled.exists() else checkpoint, weights_only=True)["average"]
    write(below(state, "dit."), asdict(TINY), to / "world-dit")
    text = TextEncoder(build_tokenizer(), TINY.text_dim)
    text.load_state_dict(below(state, "text."))
    tensors = {name: t for name, t in text.umt5.state_dict().items() if name != "encoder.embed_tokens.weight"}  # tied
    write(tensors, text.umt5.config.to_diff_dict(), to / "world-text")
    text.tokenizer.save(str(to / "world-tokenizer.json"))


def export_vae(run: Path, to: Path) -> None:
    """Whatever has been trained of it; an untrained half goes out as it was initialised."""
    config = tiny_config(load_codec(run / "data"))
    vae = WanVAE(config)
    inflate(vae)
    for part in ("decoder", "encoder"):
        path = run / f"vae-{part}.pt"
        if path.exists():
            half(vae, part).load_state_dict(torch.load(path, weights_only=True)["weights"])
    write(vae.state_dict(), asdict(config), to / "world-vae")


def write(tensors: dict[str, Tensor], config: dict[str, Any], path: Path) -> None:
    """float16, and the sizes beside it; path: without a suffix."""
    halves = {name: tensor.to(torch.float16).contiguous() for name, tensor in tensors.items()}
    save_file(halves, path.with_suffix(".safetensors"), metadata={"format": "pt"})
    path.with_suffix(".safetensors").chmod(0o644)  # safetensors makes files that only their owner can read
    path.with_suffix(".json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main()
