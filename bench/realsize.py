"""Does a session of the released model take the memory we say it takes? Random weights of every released key and shape.

`python -m riverrun.bench.realsize [--height H] [--width W] [--meta] [--json FILE]`

Nothing is downloaded: the LongLive transformer (825 tensors, 1.42 B values) and the Wan VAE (194 tensors) are written
in bfloat16 to a temporary folder, in the form they are published in, and loaded as a user would load them. Then one
block is made at a small size, on the CPU, and the bytes that `describe` promised for the session are compared with the
bytes of every tensor its State holds. Takes 3.1 GB of disk, about 7 GB of memory and a minute or two.

`--meta` allocates nothing: one row for every method, its released names and shapes and what a session would keep.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from riverrun.bench import released
from riverrun.bench.report import table, write_json
from riverrun.models.base import Control
from riverrun.models.generation.longlive import LongLive
from riverrun.models.generation.longlive_state import LongLiveParams
from riverrun.models.inspect import inspect_checkpoint, render
from riverrun.models.wan.dit import WAN_1_3B, WanModel
from riverrun.models.wan.sizes import human
from riverrun.models.wan.vae import WAN21_VAE, WanVAE

LIMIT_PERCENT = 3.0
DISK, MEMORY = 4 << 30, 8 << 30
RELEASED = LongLiveParams(prompt="", height=480, width=832)
T = TypeVar("T")


def random_weights(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """bfloat16 values for every tensor of a module on the meta device: gains near 1, the rest small."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in ((name, t.shape) for name, t in module.state_dict().items()):
        values = torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=draw)
        is_gain = name.endswith(".gamma") or ("norm" in name and name.endswith(".weight"))
        tensors[name] = values + 1 if is_gain else values
    return tensors


def write_weights(folder: Path) -> dict[str, str]:
    """Both files as they are published: the transformer wrapped under `generator` with `model.` keys, the VAE plain."""
    with torch.device("meta"):
        transformer, vae = WanModel(WAN_1_3B), WanVAE(WAN21_VAE)
    wrapped = {f"model.{name}": tensor for name, tensor in random_weights(transformer, 0).items()}
    torch.save({"generator": wrapped}, folder / "longlive_base.pt")
    save_file(random_weights(vae, 1), folder / "Wan2.1_VAE.safetensors")
    return {"weights": str(folder / "longlive_base.pt"), "vae": str(folder / "Wan2.1_VAE.safetensors")}


def held_by(thing: Any, seen: set[int] | None = None) -> Iterator[torch.UntypedStorage]:
    """Every piece of memory under a State's tensors, each once, wherever they hang: what it holds, not what it says."""
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        storage = thing.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            yield storage
        return
    parts: Sequence[Any] = ()
    if isinstance(thing, Mapping):
        parts = list(thing.values())
    elif isinstance(thing, list | tuple | set):
        parts = list(thing)
    elif hasattr(thing, "__dict__") and type(thing).__module__.startswith("riverrun."):
        parts = list(vars(thing).values())
    for part in parts:
        yield from held_by(part, seen)


def timed(work: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def measure(folder: Path, height: int, width: int, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Writes, checks, loads, makes one block; the figures that `show` prints and `--json` writes."""
    files, write_s = timed(lambda: write_weights(folder))
    for file in files.values():
        say(render(inspect_checkpoint(file)))
    options = {"height": height, "width": width, "max_pixels": 832 * 480}
    model, load_s = timed(lambda: LongLive(**files, dtype="bfloat16", device="cpu", **options))  # type: ignore[arg-type]
    params = LongLiveParams(prompt="random")
    description = model.describe(params)
    state = model.open(params, seed=0)
    rows = np.random.default_rng(0).standard_normal((WAN_1_3B.text_len, WAN_1_3B.text_dim), dtype=np.float32)
    model.control(state, Control(0, "prompt", "random", rows))
    [[chunk]], block_s = timed(lambda: model.step([state]))
    predicted, measured = description.retained_bytes, sum(storage.nbytes() for storage in held_by(state))
    percent = 100 * (predicted / measured - 1)
    return {
        "tensors": len(model.model.state_dict()) + len(model.vae.state_dict()),
        "frames": list(chunk.data.shape),
        "is_made": chunk.data.shape == (description.first_frames, height, width, 3) and bool(chunk.data.std() > 0),
        "predicted_bytes": predicted,
        "measured_bytes": measured,
        "reported_bytes": state.nbytes,
        "difference_percent": percent,
        "predicted_bytes_480x832": model.describe(RELEASED).retained_bytes,
        "write_s": write_s,
        "load_s": load_s,
        "block_s": block_s,
        "holds": abs(percent) <= LIMIT_PERCENT,
    }


def show(figures: Mapping[str, Any]) -> str:
    """The figures as a table, and the verdict."""
    rows = [
        ["predicted for one session", human(figures["predicted_bytes"])],
        ["held after its first block", human(figures["measured_bytes"])],
        ["difference", f"{figures['difference_percent']:+.2f} %"],
        ["predicted at 480x832", human(figures["predicted_bytes_480x832"])],
        ["tensors loaded", str(figures["tensors"])],
        ["first block", f"{figures['frames']}, {figures['block_s']:.1f} s"],
        ["weights written, loaded", f"{figures['write_s']:.1f} s, {figures['load_s']:.1f} s"],
    ]
    verdict = f"within {LIMIT_PERCENT:g} %: {'yes' if figures['holds'] else 'NO'}"
    return f"{table(['', 'bfloat16, CPU'], rows)}\n\n{verdict}"


def shortage(folder: Path) -> str:
    """What this machine has too little of; empty if nothing."""
    disk = shutil.disk_usage(folder).free
    available = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable")]
    memory = (
        int(available[0].split()[1]) << 10 if available else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    )
    short = [("disk", disk, DISK), ("memory", memory, MEMORY)]
    return "; ".join(f"{human(free)} of {name} free, {human(need)} needed" for name, free, need in short if free < need)


def meta(file: str | None) -> int:
    """The table of `--meta`."""
    found = released.all_released()
    print(released.show(found))
    if file:
        write_json(file, "realsize-meta", {"dtype": "bfloat16"}, {name: asdict(one) for name, one in found.items()})
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """0 if the prediction holds, 1 if not, 2 if the machine is too small."""
    parser = argparse.ArgumentParser(prog="python -m riverrun.bench.realsize", description=__doc__.splitlines()[0])
    parser.add_argument("--height", type=int, default=64, help="pixels, a multiple of 16 (default 64)")
    parser.add_argument("--width", type=int, default=96, help="pixels, a multiple of 16 (default 96)")
    parser.add_argument("--json", metavar="FILE", help="write the figures and the machine's facts there")
    parser.add_argument("--meta", action="store_true", help="every method at released size, nothing allocated")
    options = parser.parse_args(argv)
    if options.meta:
        return meta(options.json)
    with tempfile.TemporaryDirectory(prefix="riverrun-realsize-") as folder:
        if short := shortage(Path(folder)):
            print(f"not run: {short}", file=sys.stderr)
            return 2
        figures = measure(Path(folder), options.height, options.width)
    print(show(figures))
    if options.json:
        write_json(options.json, "realsize", {"height": options.height, "width": options.width}, figures)
    return 0 if figures["holds"] and figures["is_made"] else 1


if __name__ == "__main__":
    sys.exit(main())
