"""Super-resolution x4: nearness to the truth beside other upscalers, what each part adds, and what the cache saves.

    python -m riverrun.bench.vsr [--quick] [--json FILE] [--only quality,parts,semantic,speed]
    python -m riverrun.bench.vsr --movielq DIR [--write DIR]
    python -m riverrun.bench.vsr --picture docs/vsr.png

Times are CPU time on one thread, so that other work on the machine counts little. Clips and peers come out of wheels
that are downloaded once (`train/clips.py`); what isn't there is left out and said.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch

from riverrun.actors.loading import build
from riverrun.bench.report import tables, write_json
from riverrun.bench.vsr_movies import movies
from riverrun.bench.vsr_parts import parts
from riverrun.bench.vsr_peers import peers
from riverrun.bench.vsr_quality import Ours, merged, rows, semantic, sources
from riverrun.bench.vsr_speed import speeds
from riverrun.configs import load_model
from riverrun.models.super_resolution.infvsr import InfVSR
from riverrun.train.clips import Absent

MODEL = "infvsr-world"
PARTS = ("quality", "parts", "semantic", "speed")
COLUMNS = {
    "quality": {
        "clip": "source", "upscaler": "name", "PSNR dB": "psnr", "above bicubic": "gain",
        "temporal error": "temporal", "CPU ms a frame": "ms", "holds": "holds",
    },
    "parts": {"clip": "source", "without": "without", "PSNR dB": "psnr", "change": "change", "levels moved": "moved"},
    "semantic": {
        "clip": "source", "frames": "frames", "ours": "ours_mean", "bicubic": "bicubic_mean",
        "ours, first fifth": "ours_first_fifth", "ours, last fifth": "ours_last_fifth",
    },
    "speed": {"frames": "frames", "the transformer with": "way", "frames/s": "fps", "GFLOP a frame": "gflop"},
    "movies": {
        "clip": "name", "frames": "frames", "width": "width", "height": "height", "CPU ms a frame": "ms",
        "cosine with input": "cosine", "with first output": "steady",
    },
}  # fmt: skip


def measure(ours: Ours, only: Sequence[str], quick: bool) -> dict[str, Any]:
    found = sources(worlds=2 if quick else 6)
    figures: dict[str, Any] = {}
    if "quality" in only:
        known, places = peers(), 3 if quick else 8
        made = [row for source in found for row in rows(source, ours, known, places)]
        worlds = [row for row in made if row.source.startswith("world ")]
        figures["quality"] = [asdict(row) for row in (*made[: len(made) - len(worlds)], *merged(worlds))]
    if "parts" in only:
        looked = [source for source in found if source.name in ("carphone", "world 1")]
        figures["parts"] = [asdict(row) for source in looked for row in parts(source, ours.model, 33 if quick else 57)]
    if "semantic" in only:
        try:
            figures["semantic"] = [semantic(found[0], ours, 100 if quick else 1000)]
        except Absent as error:
            print(f"left out: {error}", flush=True)
    if "speed" in only:
        figures["speed"] = [
            asdict(s) | {"fps": s.frames / s.seconds, "gflop": s.flops / s.frames / 1e9}
            for s in speeds(ours.model, (2, 4) if quick else (2, 8, 20))
        ]
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m riverrun.bench.vsr", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer places, shorter clips")
    parser.add_argument("--json", metavar="FILE", help="write the figures and the machine's facts there")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--model", default=MODEL, help="a model of configs/models, or a YAML file")
    parser.add_argument("--movielq", metavar="DIR", type=Path, help="upscale folders of frames, as MovieLQ has them")
    parser.add_argument("--write", metavar="DIR", type=Path, help="with --movielq: where the frames go, as PNG")
    parser.add_argument("--picture", metavar="FILE", type=Path, help="draw small, bicubic, ours and truth there")
    options = parser.parse_args(argv)
    if unknown := set(options.only.split(",")) - set(PARTS):
        parser.error(f"--only knows {', '.join(PARTS)}, not {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    ours = Ours(cast(InfVSR, build(load_model(options.model))))
    if options.picture:
        from riverrun.bench.vsr_picture import draw

        draw(options.picture, ours)
        return 0
    if options.movielq:
        most = 30 if options.quick else None
        figures = {"movies": [asdict(movie) for movie in movies(options.movielq, ours, options.write, most)]}
    else:
        figures = measure(ours, options.only.split(","), options.quick)
    print(tables(COLUMNS, figures), flush=True)
    if options.json:
        write_json(options.json, "vsr", {"model": options.model, "quick": options.quick}, figures)
    return 1 if any(row["holds"] is False for row in figures.get("quality", ())) else 0


if __name__ == "__main__":
    sys.exit(main())
