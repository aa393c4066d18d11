"""EasyControl's conditions: where their tokens stand, how LoRAs adapt them, and their keys (easycontrol.md §2-6, §8).

Paper: arXiv 2503.07027. A condition attends to nothing but itself and is modulated as at noise level 0, so its keys
and values in every layer depend on neither noise nor timestep nor the other conditions. They are computed once, from
the condition alone, and joined in any combination behind the keys of text and noise, whose queries see them all.

Legend: B rows (sessions), T tokens (text, then noise), C tokens of a condition, H heads, D head dim, r rank.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from riverrun.kernels.attention import attention
from riverrun.kernels.rope import rotate
from riverrun.kernels.shared import content_key
from riverrun.models.base import BadRequest
from riverrun.models.generation.flux import FluxConfig, FluxTransformer, turn_of
from riverrun.models.weights import load_strict

Placing = Literal["subject", "spatial"]
"""`spatial`: the condition lies over the image (depth, edges, pose). `subject`: it shows what the image is to hold."""
TOKEN = 16
"""Pixels along each side of a token: 8 of the VAE, 2 of the packing."""
SUBJECT_ROW = 64
"""The row where subjects begin, whatever the image's height: beyond 1024 pixels they lie over it."""


# -- positions ---------------------------------------------------------------------------------------------------


def grid_ids(rows: Tensor, columns: Tensor) -> Tensor:
    """[len(rows) * len(columns), 3] position ids (0, row, column), row by row."""
    places = torch.cartesian_prod(rows, columns)
    return torch.cat([torch.zeros_like(places[:, :1]), places], dim=1)


def image_ids(height: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Ids of the tokens of an image of height x width pixels."""
    return grid_ids(*(torch.arange(side // TOKEN).to(dtype) for side in (height, width)))


def condition_ids(placing: Placing, size: int, height: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Ids of a condition's tokens, size x size pixels, beside an image of height x width pixels.

    Spatial ids are spread over the image's grid. They are rounded to `dtype`, the prompt's: in bfloat16, as
    released, by up to an eighth of a token.
    """
    side = torch.arange(size // TOKEN, dtype=torch.float32)
    if placing == "subject":
        return grid_ids((side + SUBJECT_ROW).to(dtype), side.to(dtype))
    rows, columns = (side * ((pixels // TOKEN) / (size // TOKEN)) for pixels in (height, width))
    return grid_ids(rows.to(dtype), columns.to(dtype))


# -- LoRAs -------------------------------------------------------------------------------------------------------


class LoRA(nn.Module):
    """up(down(x)), rank r; the file's scale alpha / rank is 1."""

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, rank, bias=False), nn.Linear(rank, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


class LayerLoRAs(nn.Module):
    """Those of one attention layer, one for each condition the file was trained on."""

    def __init__(self, dim: int, rank: int, count: int, names: Sequence[str]) -> None:
        super().__init__()
        for name in names:
            setattr(self, f"{name}_loras", nn.ModuleList(LoRA(dim, rank) for _ in range(count)))


class ConditionLoRAs(nn.Module):
    """One LoRA file, under its own keys. A single block has none for an output projection."""

    def __init__(self, config: FluxConfig, rank: int, count: int) -> None:
        super().__init__()

        def blocks(layers: int, names: Sequence[str]) -> nn.ModuleList:
            made = (LayerLoRAs(config.dim, rank, count, names) for _ in range(layers))
            return nn.ModuleList(nn.ModuleDict({"attn": nn.ModuleDict({"processor": one})}) for one in made)

        self.transformer_blocks = blocks(config.num_layers, ("q", "k", "v", "proj"))
        self.single_transformer_blocks = blocks(config.num_single_layers, ("q", "k", "v"))
        self.count = count

    @classmethod
    def load(cls, config: FluxConfig, tensors: Mapping[str, Tensor]) -> ConditionLoRAs:
        """From a file's tensors. Raises BadRequest if they are no condition LoRAs of this transformer."""
        found = [(int(m[1]), t) for k, t in tensors.items() if (m := re.search(r"_loras\.(\d+)\.down\.weight$", k))]
        if not found:
            raise BadRequest("the file holds no condition LoRAs (... .attn.processor.q_loras.0.down.weight)")
        with torch.device("meta"):
            loras = cls(config, found[0][1].shape[0], 1 + max(index for index, _ in found))
        load_strict(loras, tensors)
        return loras.requires_grad_(False)

    def adapters(self, index: int, strength: float) -> list[LayerAdapter]:
        """The `index`-th condition's, one a layer of the transformer, double blocks first."""
        blocks = [*self.transformer_blocks, *self.single_transformer_blocks]
        layers = [cast(LayerLoRAs, block.get_submodule("attn.processor")) for block in blocks]
        return [LayerAdapter(layer, index, strength) for layer in layers]


@dataclass(frozen=True)
class LayerAdapter:
    """One condition's LoRAs in one layer, `strength` times."""

    loras: LayerLoRAs
    index: int
    strength: float

    def add(self, name: str, x: Tensor) -> Tensor:
        return self.strength * getattr(self.loras, f"{name}_loras")[self.index](x)


@dataclass(frozen=True, eq=False)
class Condition:
    """A kind of condition the model takes: its port, where its tokens stand, and the LoRAs that adapt them.

    digest: names the LoRAs' content.
    """

    port: str
    placing: Placing
    loras: ConditionLoRAs
    index: int
    digest: str


def load_conditions(
    config: FluxConfig, files: Mapping[Placing, Mapping[str, str]], read: Callable[[str], Mapping[str, Tensor]]
) -> dict[str, Condition]:
    """By port, in the order of `files`, which is that of their tokens.

    files: the LoRA file of each port; one trained on several conditions is named once for each, in its order, any
    other as often as one likes. read: a file's tensors. Raises BadRequest for a port named twice, or a file of
    several conditions named more often than it has them.
    """
    loaded: dict[str, tuple[ConditionLoRAs, str]] = {}
    used: Counter[str] = Counter()
    conditions: dict[str, Condition] = {}
    for placing, port, source in ((p, port, source) for p, ports in files.items() for port, source in ports.items()):
        if port in conditions:
            raise BadRequest(f"condition {port!r} is named both as a subject and as spatial")
        if source not in loaded:
            tensors = read(source)
            loaded[source] = ConditionLoRAs.load(config, tensors), _digest(tensors)
        loras, digest = loaded[source]
        index = used[source] if loras.count > 1 else 0
        if index == loras.count:
            raise BadRequest(f"{source} was trained on {loras.count} conditions, {port!r} is one too many")
        conditions[port] = Condition(port, placing, loras, index, digest)
        used[source] += 1
    return conditions


def _digest(tensors: Mapping[str, Tensor]) -> str:
    parts = ((name, tensors[name].float().cpu().numpy()) for name in sorted(tensors))
    return content_key(*(part for pair in parts for part in pair))


# -- keys and values ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ConditionEntry:
    """Keys, normed and turned, and values of one condition, [1, C, H, D] for each layer. Immutable, shareable."""

    k: tuple[Tensor, ...]
    v: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (*self.k, *self.v))


def entry_bytes(config: FluxConfig, size: int, dtype: torch.dtype) -> int:
    """Bytes of an entry of size x size pixels: 684 MiB at FLUX.1-dev, 512 pixels, bfloat16."""
    return 2 * config.layers * (size // TOKEN) ** 2 * config.dim * dtype.itemsize


class AloneMemory:
    """A condition attending to itself; what it attended to is kept. Of B conditions at once, all equally placed."""

    def __init__(self, turn: tuple[Tensor, Tensor]) -> None:
        self._turn = turn
        self.k: list[Tensor] = []
        self.v: list[Tensor] = []

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = rotate(q, self._turn), rotate(k, self._turn)
        self.k.append(k)
        self.v.append(v)
        return attention(q, k, v)


class JointMemory:
    """Text and noise seeing themselves and the conditions of their row; rows may have different ones, or none."""

    def __init__(self, turn: tuple[Tensor, Tensor], rows: Sequence[Sequence[ConditionEntry]]) -> None:
        self._turn, self._rows = turn, rows

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = rotate(q, self._turn), rotate(k, self._turn)
        if not any(self._rows):
            return attention(q, k, v)
        out = []
        for row, entries in enumerate(self._rows):
            at = slice(row, row + 1)
            keys = torch.cat([k[at], *(entry.k[layer] for entry in entries)], dim=1)  # (1, T + C..., H, D)
            values = torch.cat([v[at], *(entry.v[layer] for entry in entries)], dim=1)
            out.append(attention(q[at], keys, values))
        return torch.cat(out)


@torch.no_grad()
def condition_entry(
    model: FluxTransformer,
    latents: Tensor,
    ids: Tensor,
    pooled: Tensor,
    guidance: float,
    adapters: Sequence[LayerAdapter],
) -> ConditionEntry:
    """One pass over a condition alone, at noise level 0.

    latents [1, C, c] packed; ids [C, 3]; pooled [1, P]: the prompt in force, which the entry depends on, as it does
    on the guidance.
    """
    memory = AloneMemory(turn_of(ids.to(latents.device), model.config.axes_dims_rope))
    vec = model.embed(pooled.new_zeros(1), pooled.new_full((1,), guidance, dtype=torch.float32), pooled)
    model.image_alone(latents, vec, memory, adapters)
    return ConditionEntry(tuple(memory.k), tuple(memory.v))


def joint_memory(
    model: FluxTransformer, text_len: int, ids: Tensor, rows: Sequence[Sequence[ConditionEntry]]
) -> JointMemory:
    """For calls on `text_len` text tokens, which stand at 0, and image tokens at ids [N, 3]."""
    whole = torch.cat([ids.new_zeros(text_len, 3), ids])
    device = next(model.parameters()).device
    return JointMemory(turn_of(whole.to(device), model.config.axes_dims_rope), rows)
