"""`riverrun models check` on FLUX's files, and their sizes read off their tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from riverrun.models.generation.easycontrol_conditions import ConditionLoRAs
from riverrun.models.generation.flux import FLUX_DEV, FluxTransformer
from riverrun.models.generation.flux_sizes import condition_session, infer_flux, infer_flux_vae, infer_loras
from riverrun.models.generation.flux_vae import FLUX_VAE, FluxVAE
from riverrun.models.inspect import inspect_checkpoint

CASE = Path(__file__).parents[1] / "fixtures" / "easycontrol" / "easycontrol_subject_spatial2.safetensors"


def test_released_sizes_are_read_off_their_shapes() -> None:
    with torch.device("meta"):
        assert infer_flux(FluxTransformer(FLUX_DEV).state_dict()) == FLUX_DEV
        assert infer_flux_vae(FluxVAE(FLUX_VAE).state_dict()) == FLUX_VAE
        loras = ConditionLoRAs(FLUX_DEV, 128, 2)
    again, sizes = infer_loras(loras.state_dict())
    assert sizes == {"rank": 128, "conditions": 2, "dim": 3072, "layers": 57}
    assert shapes(again) == shapes(loras)


def shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def test_a_session_holds_its_subjects_keys() -> None:
    """easycontrol.md §9: 684 MiB for a condition of 512 pixels."""
    parts = condition_session(FLUX_DEV, 1024, 1024, torch.bfloat16).parts
    assert parts["a subject's keys and values"] == 684 * 2**20


@pytest.mark.parametrize(
    ("prefix", "what", "sizes"),
    [
        ("w/", "flux", {"num_layers": 2, "num_single_layers": 1, "attention_head_dim": 12, "guidance_embeds": True}),
        ("w/lora1/", "condition-lora", {"rank": 4, "conditions": 1, "dim": 24, "layers": 3}),
    ],
)
def test_recognised_and_complete(tmp_path: Path, prefix: str, what: str, sizes: dict) -> None:
    named = {name.removeprefix(prefix): t for name, t in load_file(CASE).items() if name.startswith(prefix)}
    tensors = {name: tensor for name, tensor in named.items() if not name.startswith("lora")}
    save_file(tensors, tmp_path / "model.safetensors")
    found = inspect_checkpoint(tmp_path / "model.safetensors")
    assert (found.what, found.is_loadable) == (what, True)
    assert sizes.items() <= found.config.items()
    lost = sorted(tensors)[0]
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors")
    assert inspect_checkpoint(tmp_path / "model.safetensors").misfit.missing == (lost,)


def test_an_image_vae_is_not_taken_for_wans(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = {"block_out_channels": (4, 4, 8, 8), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 1}
    save_file(FluxVAE(type(FLUX_VAE).read(vars(FLUX_VAE) | config)).state_dict(), tmp_path / "vae.safetensors")
    found = inspect_checkpoint(tmp_path / "vae.safetensors")
    assert (found.what, found.is_loadable, found.session) == ("flux-vae", True, None)
    assert found.config["block_out_channels"] == (4, 4, 8, 8)
