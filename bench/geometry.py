"""Camera, depth and points of the tiny InfiniteVGGT on unseen sequences, its speed, and what a long stream does to it.

    python -m riverrun.bench.geometry [--quick] [--json FILE] [--only PARTS]
    python -m riverrun.bench.geometry --speed | --drift
    python -m riverrun.bench.geometry --picture FILE

Every figure stands beside that of an answer which needs no network. Times are CPU time on one thread, so that other
work on the machine counts little.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from riverrun.actors.loading import build
from riverrun.bench.geometry_camera import camera_bounds
from riverrun.bench.geometry_drift import BUDGET, MARKS, QUICK_MARKS, drift, reading
from riverrun.bench.geometry_pairs import pairs
from riverrun.bench.geometry_picture import picture
from riverrun.bench.geometry_quality import GAP, quality
from riverrun.bench.geometry_real import real
from riverrun.bench.geometry_speed import speeds
from riverrun.bench.geometry_world import asked
from riverrun.bench.report import tables, write_json
from riverrun.configs import load_model
from riverrun.models.geometry.infinitevggt import InfiniteVGGT

MODEL = "infinitevggt-world"
PARTS = ("quality", "pairs", "world", "real", "reading", "camera", "drift", "speed")
COLUMNS = {
    "quality": {
        "path": "path", "AbsRel": "abs_rel", "<1.25": "within", "constant": "constant", "floor": "floor_plane",
        "mean map": "mean_map", "turn deg": "rotation", "of": "rotation_still", "turn ratio": "rotation_ratio",
        "move ratio": "translation_ratio", "ATE": "ate", "ATE still": "ate_still", "acc": "accuracy",
        "acc chance": "accuracy_chance", "comp": "completion", "comp chance": "completion_chance", "NC": "normals",
        "NC chance": "normals_chance",
    },
    "pairs": {
        "pairs": "pairs", "scenes": "scenes", "turn deg": "rotation", "of": "rotation_still", "ratio": "rotation_ratio",
        "strangers": "strangers", "move": "translation", "of ": "translation_still", "ratio ": "translation_ratio",
        "strangers ": "translation_strangers", "AbsRel": "abs_rel", "mean map": "mean_map", "constant": "constant",
    },
    "world": {
        "video": "video", "asked for": "asked", "turn deg": "turn", "found deg": "turned", "error deg": "rotation",
        "move": "move", "move error": "translation", "direction off deg": "direction",
    },
    "real": {"pair": "pair", "pairs": "pairs", "AbsRel": "abs_rel", "<1.25": "within", "constant": "constant",
             "turn off deg": "turned", "direction off deg": "direction"},
    "reading": {"memory": "memory", "AbsRel": "abs_rel", "turn deg": "rotation", "move": "translation"},
    "camera": {
        "camera memory": "camera", "rows": "rows", "bytes": "bytes", "turn deg": "rotation", "move": "translation",
        "off full deg": "turned_off", "off full": "moved_off", "ms": "ms",
    },
    "drift": {
        "path": "path", "memory": "policy", "frames": "frames", "rows at most": "most_rows", "AbsRel": "abs_rel",
        "chance": "chance", "turn ratio": "rotation_ratio", "move ratio": "translation_ratio", "ATE": "ate",
        "ATE still": "ate_still", "acc": "accuracy", "acc chance": "accuracy_chance", "comp": "completion",
        "comp chance": "completion_chance", "NC": "normals", "NC chance": "normals_chance",
    },
    "differences": {
        "path": "path", "memory": "policies", "windows": "windows", "turn deg": "rotation", "noise": "rotation_noise",
        "move": "translation", "noise ": "translation_noise",
    },
    "speed": {"budget in frames": "budget", "rows": "rows", "paged ms": "ours", "concatenated ms": "usual",
              "ratio": "ratio", "outputs differ by": "difference"},
}  # fmt: skip


def measure(only: Sequence[str], is_quick: bool, keep: Path | None = None) -> dict[str, Any]:
    """The figures by part; "absent": lines on what could not be measured. keep: see `drift`."""
    torch.set_num_threads(1)
    model = build(load_model(MODEL))
    assert isinstance(model, InfiniteVGGT)
    figures: dict[str, Any] = {}
    if "quality" in only:
        figures["quality"] = quality(model, *((1, 24) if is_quick else (6, 64)))
    if "pairs" in only:
        figures["pairs"] = pairs(model, 8 if is_quick else 120)
    if "world" in only:
        figures["world"] = asked(model, *((1, 24) if is_quick else (8, 60)))
    if "real" in only:
        figures["real"], figures["absent"] = real(model)
    if "reading" in only:
        figures["reading"] = reading(model, 2 if is_quick else 8)
    if "camera" in only:
        figures["camera"] = camera_bounds(model, 120 if is_quick else 600)
    if "drift" in only:
        figures |= drift(model, QUICK_MARKS if is_quick else MARKS, keep)
    if "speed" in only:
        figures["speed"] = speeds(model, (12,) if is_quick else (12, 24, 96), 10 if is_quick else 60)
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m riverrun.bench.geometry", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter sequences")
    parser.add_argument("--json", metavar="FILE", help="write the figures and the machine's facts there")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--speed", action="store_true", help="only that")
    parser.add_argument("--drift", action="store_true", help="only that, with `reading`")
    parser.add_argument("--keep", metavar="FILE", type=Path, help="where `drift` keeps each path that is done")
    parser.add_argument("--picture", metavar="FILE", help="frame, true depth, depth, cloud and path as a picture")
    given = parser.parse_args(argv)
    only = ("speed",) if given.speed else ("reading", "drift") if given.drift else tuple(given.only.split(","))
    if unknown := set(only) - set(PARTS):
        parser.error(f"--only knows {', '.join(PARTS)}, not {', '.join(sorted(unknown))}")
    if given.picture:
        model = build(load_model(MODEL))
        picture(model, Path(given.picture))
        return 0
    figures = measure(only, given.quick, given.keep)
    print(tables(COLUMNS, figures))
    for line in figures.get("absent", ()):
        print(line)
    if "drift" in figures:
        print(f"budget: {BUDGET} frames a layer; ratios are errors over {GAP} frames by those of no motion")
        print("differences: mean over windows of 100 frames; within their noise (two standard errors) they are none")
    if given.json:
        write_json(given.json, "geometry", {"quick": given.quick, "only": list(only), "gap": GAP}, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
