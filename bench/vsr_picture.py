"""The side-by-side picture: small frame, bicubic, ours, truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from riverrun.bench.vsr_peers import bicubic
from riverrun.bench.vsr_quality import Ours, sources
from riverrun.train.quality import psnr

SHOWN = {"carphone": (40, 0, 16, 128, 144), "bikes": (215, 60, 250, 128, 144)}
"""Frame, top, left, height and width of the part that is shown, in pixels of the truth."""
ZOOM, GAP, LINE = 2, 6, 18


@torch.no_grad()
def draw(path: Path, ours: Ours) -> None:
    """Raises ValueError if no real clip is there."""
    rows = [_row(source.name, source.truth, source.small, ours) for source in sources(0)]
    if not rows:
        raise ValueError("the picture shows real clips, and none is there")
    width, height = rows[0].width, sum(row.height for row in rows)
    sheet = Image.new("RGB", (width, height), "white")
    for i, row in enumerate(rows):
        sheet.paste(row, (0, i * row.height))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)
    print(f"{path}: {sheet.width} x {sheet.height}")


def _row(name: str, truth: Tensor, small: Tensor, ours: Ours) -> Image.Image:
    frame, top, left, height, width = SHOWN[name]
    begin = max(0, frame - 30)  # some frames of the stream before it
    made = ours.upscale(small[begin : frame + 1])[-1]
    plain = (bicubic().upscale(small[frame : frame + 1].float() / 255)[0] * 255).round().to(torch.uint8)
    blocks = small[frame].repeat_interleave(4, 1).repeat_interleave(4, 2)
    panels = [("small, x4 squares", blocks), ("bicubic", plain), ("ours", made), ("truth", truth[frame])]
    sheet = Image.new("RGB", (4 * (width * ZOOM + GAP) - GAP, height * ZOOM + LINE), "white")
    for i, (title, picture) in enumerate(panels):
        at = i * (width * ZOOM + GAP)
        db = f", {psnr(picture[None], truth[frame][None]):.1f} dB" if title in ("bicubic", "ours") else ""
        ImageDraw.Draw(sheet).text((at + 2, 3), f"{name}: {title}{db}", fill="black")
        part = picture[:, top : top + height, left : left + width].permute(1, 2, 0).numpy()
        shown = Image.fromarray(np.ascontiguousarray(part)).resize(
            (width * ZOOM, height * ZOOM), Image.Resampling.NEAREST
        )
        sheet.paste(shown, (at, LINE))
    return sheet
