"""Every published name of a tensor leads to the one we load, against the maps the reference made by machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from riverrun.models.key_forms import dit_keys, umt5_keys, vae_keys
from riverrun.models.wan.dit import WAN_1_3B, WanModel
from riverrun.models.wan.vae import WAN21_VAE, WanVAE

FIXTURES = Path(__file__).parents[1] / "fixtures" / "wan"


@pytest.mark.parametrize(
    ("name", "to_ours", "is_ours_first"),
    [("wan_dit_original", dit_keys, True), ("wan_vae", vae_keys, True), ("wan_umt5", umt5_keys, False)],
)
def test_the_whole_map(name: str, to_ours: Callable[..., dict[str, Tensor]], is_ours_first: bool) -> None:
    (pairs,) = (
        value
        for key, value in json.loads((FIXTURES / f"{name}.json").read_text()).items()
        if "_keys" in key and "original_to" in key
    )
    ours_of = {theirs: ours for ours, theirs in pairs.items()} if is_ours_first else pairs
    tensors = {theirs: torch.tensor(i) for i, theirs in enumerate(ours_of)}
    assert to_ours(tensors) == {ours_of[theirs]: tensor for theirs, tensor in tensors.items()}
    ours = {name: torch.tensor(i) for i, name in enumerate(ours_of.values())}
    assert to_ours(ours) == ours, "our own names stay as they are"


def test_the_flat_decoder_follows_the_number_of_blocks() -> None:
    """With one residual block fewer than released, a stage has two of them and its upsampler comes third."""
    names = ["up_blocks.0.resnets.0", "up_blocks.0.resnets.1", "up_blocks.0.upsamplers.0", "up_blocks.1.resnets.0"]
    theirs = {f"decoder.{name}.time_conv.bias": torch.zeros(1) for name in names}
    ours = vae_keys(theirs | {"encoder.conv_in.bias": torch.zeros(1)})
    assert list(ours) == [*(f"decoder.upsamples.{i}.time_conv.bias" for i in range(4)), "encoder.conv1.bias"]


def test_a_tied_copy_of_the_embedding_is_dropped_or_used() -> None:
    shared, copy = torch.zeros(2, 3), torch.ones(2, 3)
    assert umt5_keys({"shared.weight": shared, "encoder.embed_tokens.weight": copy}) == {"shared.weight": shared}
    assert umt5_keys({"encoder.embed_tokens.weight": copy}) == {"shared.weight": copy}


def test_the_released_transformer_has_its_825_names() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in WanModel(WAN_1_3B).state_dict().items()}
    assert len(shapes) == 825
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 1_418_996_800
    assert {name.split(".")[1] for name in shapes if name.startswith("blocks.")} == {str(n) for n in range(30)}
    released = {  # longlive.md §9
        "patch_embedding.weight": (1536, 16, 1, 2, 2),
        "text_embedding.0.weight": (1536, 4096),
        "text_embedding.2.weight": (1536, 1536),
        "time_embedding.0.weight": (1536, 256),
        "time_projection.1.weight": (9216, 1536),
        "blocks.29.modulation": (1, 6, 1536),
        "blocks.0.self_attn.q.weight": (1536, 1536),
        "blocks.0.self_attn.norm_k.weight": (1536,),
        "blocks.0.norm3.bias": (1536,),
        "blocks.0.cross_attn.o.bias": (1536,),
        "blocks.0.ffn.0.weight": (8960, 1536),
        "blocks.0.ffn.2.weight": (1536, 8960),
        "head.modulation": (1, 2, 1536),
        "head.head.weight": (64, 1536),
    }
    assert {name: shapes[name] for name in released} == released


def test_the_released_vae_has_its_shapes() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in WanVAE(WAN21_VAE).state_dict().items()}
    released = {  # wan_base.md §2
        "encoder.conv1.weight": (96, 3, 3, 3, 3),
        "encoder.downsamples.3.residual.2.weight": (192, 96, 3, 3, 3),
        "encoder.downsamples.3.shortcut.weight": (192, 96, 1, 1, 1),
        "encoder.downsamples.5.time_conv.weight": (192, 192, 3, 1, 1),
        "encoder.middle.1.to_qkv.weight": (1152, 384, 1, 1),
        "encoder.head.2.weight": (32, 384, 3, 3, 3),
        "conv1.weight": (32, 32, 1, 1, 1),
        "conv2.weight": (16, 16, 1, 1, 1),
        "decoder.conv1.weight": (384, 16, 3, 3, 3),
        "decoder.upsamples.3.resample.1.weight": (192, 384, 3, 3),
        "decoder.upsamples.7.time_conv.weight": (768, 384, 3, 1, 1),
        "decoder.upsamples.4.residual.2.weight": (384, 192, 3, 3, 3),
        "decoder.upsamples.11.resample.1.weight": (96, 192, 3, 3),
        "decoder.head.2.weight": (3, 96, 3, 3, 3),
    }
    assert {name: shapes[name] for name in released} == released
    assert [name for name in shapes if name.endswith("shortcut.weight")] == [
        "encoder.downsamples.3.shortcut.weight",
        "encoder.downsamples.6.shortcut.weight",
        "decoder.upsamples.4.shortcut.weight",
    ]
