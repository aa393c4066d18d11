"""The streaming VAE of one scene, whole or in overlapping tiles (infvsr_flashvsr.md A1 §7).

T frames, C channels, H W height and width; positions and sizes of tiles are in latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from riverrun.kernels.histories import Histories
from riverrun.models.wan.vae import WanVAE


@dataclass(frozen=True)
class Tile:
    """Rows [top, bottom) and columns [left, right) of a picture."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def name(self) -> str:
        return f"{self.top},{self.left}"

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    def cut(self, x: Tensor, factor: int) -> Tensor:
        """Its part of x (..., H, W), which has `factor` values a latent along each side."""
        return x[..., self.top * factor : self.bottom * factor, self.left * factor : self.right * factor]


@dataclass(frozen=True)
class Tiling:
    """Tiles of `size` latents every `stride`; pictures at most `whole` pixels high are one tile, however wide."""

    whole: int = 1024
    size: int = 128
    stride: int = 110

    def __post_init__(self) -> None:
        if not 0 < self.stride <= self.size:
            raise ValueError(f"stride must lie in 1..{self.size} (the tile's size), got {self.stride}")

    def tiles(self, height: int, width: int, factor: int) -> list[Tile]:
        """For a picture of height x width latents, `factor` pixels each."""
        if height * factor <= self.whole:
            return [Tile(0, height, 0, width)]
        spans = [list(self._spans(length)) for length in (height, width)]
        return [Tile(*rows, *columns) for rows in spans[0] for columns in spans[1]]

    def _spans(self, length: int) -> Iterator[tuple[int, int]]:
        for start in range(0, length, self.stride):
            if start == 0 or start - self.stride + self.size < length:  # else the one before reached the end
                yield start, min(start + self.size, length)

    def weight(self, tile: Tile, height: int, width: int, factor: int) -> Tensor:
        """float32 [rows, columns] of a tile's values in the blend: ramps where it has neighbours, 1 elsewhere."""
        border = (self.size - self.stride) * factor
        rows = _ramps(tile.height * factor, border, tile.top > 0, tile.bottom < height)
        columns = _ramps(tile.width * factor, border, tile.left > 0, tile.right < width)
        return torch.minimum(rows[:, None], columns)


def _ramps(length: int, border: int, rises: bool, falls: bool) -> Tensor:
    ramp = (torch.arange(border) + 1) / border
    weights = torch.ones(length)
    if rises and border:
        weights[:border] = ramp
    if falls and border:
        weights[-border:] = ramp.flip(0)
    return weights


class TiledVAE:
    """Encodes and decodes a stream tile by tile, and a latent frame at a time: so much fits in memory beside it.

    Stateless: the histories, one `Histories` for each tile by its name, are an argument.
    """

    def __init__(self, vae: WanVAE, tiling: Tiling) -> None:
        self.vae, self.tiling = vae, tiling

    def open(self, height: int, width: int) -> dict[str, Histories]:
        """Fresh histories for a stream of height x width pixels."""
        factor = self.vae.config.spatial_factor
        return {tile.name: Histories() for tile in self.tiling.tiles(height // factor, width // factor, factor)}

    def encode(self, pixels: Tensor, histories: dict[str, Histories]) -> Tensor:
        """(1, T, 3, H, W) in [-1, 1] -> normalised latents (1, T', C, H/8, W/8); T as `WanVAE.encode` wants it."""
        return self._apply(self._encode, pixels, histories, takes=self.vae.config.spatial_factor, gives=1)

    def decode(self, latents: Tensor, histories: dict[str, Histories]) -> Tensor:
        """(1, T, C, h, w) -> float32 (1, T', 3, 8h, 8w) in [-1, 1]; clamped after blending."""
        return self._apply(self._decode, latents, histories, 1, self.vae.config.spatial_factor).clamp(-1, 1)

    def _encode(self, pixels: Tensor, histories: Histories) -> Tensor:
        group = self.vae.config.temporal_factor
        first = pixels.shape[1] % group  # the stream's first frame is a latent of its own
        parts = ([pixels[:, :first]] if first else []) + list(pixels[:, first:].split(group, dim=1))
        return torch.cat([self.vae.encode(part, histories) for part in parts if part.shape[1]], dim=1)

    def _decode(self, latents: Tensor, histories: Histories) -> Tensor:
        return torch.cat([self.vae.decode_unclamped(one, histories) for one in latents.split(1, dim=1)], dim=1)

    def _apply(
        self,
        call: Callable[[Tensor, Histories], Tensor],
        x: Tensor,
        histories: dict[str, Histories],
        takes: int,
        gives: int,
    ) -> Tensor:
        """takes, gives: values a latent along each side of x and of the result."""
        height, width = (side // takes for side in x.shape[-2:])
        tiles = self.tiling.tiles(height, width, self.vae.config.spatial_factor)
        if len(tiles) == 1:
            return call(x, histories[tiles[0].name])
        parts = [call(tile.cut(x, takes), histories[tile.name]) for tile in tiles]
        total = parts[0].new_zeros((*parts[0].shape[:-2], height * gives, width * gives), dtype=torch.float32)
        weights = total.new_zeros(total.shape[-2:])
        for tile, part in zip(tiles, parts, strict=True):
            weight = self.tiling.weight(tile, height, width, gives).to(part.device)
            tile.cut(total, gives).add_(part * weight)
            tile.cut(weights, gives).add_(weight)
        return (total / weights).to(parts[0].dtype)
