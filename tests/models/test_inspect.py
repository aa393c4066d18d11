"""`riverrun models check`: what a file is, what it lacks, and the bytes of a session at release size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from riverrun.models.base import BadRequest
from riverrun.models.inspect import inspect_checkpoint, render
from riverrun.models.wan.dit import WAN_1_3B, WanModel
from riverrun.models.wan.sizes import dit_session, human, infer_dit, infer_vae, vae_session
from riverrun.models.wan.vae import WAN21_VAE, WanVAE

FIXTURES = Path(__file__).parents[1] / "fixtures"


def weights(case: str, prefix: str = "w/") -> dict[str, Tensor]:
    tensors = load_file(FIXTURES / f"{case}.safetensors")
    return {name.removeprefix(prefix): t.contiguous() for name, t in tensors.items() if name.startswith(prefix)}


@pytest.mark.parametrize(
    ("case", "what", "form", "sizes"),
    [
        ("wan/wan_dit_original", "wan-dit", "original", {"dim": 40, "num_layers": 2, "in_dim": 6, "text_dim": 48}),
        ("wan/wan_dit_diffusers", "wan-dit", "diffusers", {"dim": 40, "num_layers": 2, "ffn_dim": 80}),
        ("wan/wan_vae", "wan-vae", "original", {"dim": 3, "dim_mult": (1, 2, 4, 4), "num_res_blocks": 2}),
        ("longlive/vae_stream", "wan-vae", "original", {"dim_mult": (1, 2, 2, 2), "num_res_blocks": 1, "z_dim": 16}),
        ("ca2vdm/ca2_notext_weights", "stdit", "original", {"hidden_size": 32, "table_len": 11, "caption_channels": 0}),
        ("vidgpt/vidgpt_weights", "stdit", "original", {"latent_size": (4, 4), "depth": 2, "text_len": 7}),
        ("infvsr/infvsr_dit_stream", "wan-dit", "original", {"dim": 40, "text_dim": 512, "in_dim": 16}),
        ("infvsr/infvsr_visual_guidance", "guidance", "original", {"img_size": 32, "depths": (2, 2), "window_size": 4}),
        ("wan/wan_umt5", "umt5", "original", {"vocab_size": 60, "d_model": 32, "d_kv": 6, "num_heads": 4}),
    ],
)
def test_recognised_and_complete(tmp_path: Path, case: str, what: str, form: str, sizes: dict) -> None:
    save_file(weights(case), tmp_path / "model.safetensors")
    found = inspect_checkpoint(tmp_path / "model.safetensors", 64, 96)
    assert (found.what, found.form, found.is_loadable) == (what, form, True)
    assert sizes.items() <= found.config.items()
    assert found.tensors == len(weights(case))
    assert found.nbytes == 4 * found.parameters
    assert "all there, none too many" in render(found)
    assert "num_heads" not in found.config or what in ("umt5", "guidance"), "heads don't show in shapes"


def test_the_adapter_of_the_guidance_and_a_trunk_that_lacks_a_part(tmp_path: Path) -> None:
    save_file(weights("infvsr/infvsr_visual_guidance", "w_dape/"), tmp_path / "dape.safetensors")
    found = inspect_checkpoint(tmp_path / "dape.safetensors")
    assert (found.what, found.name, found.is_loadable) == ("dape", "DAPE adapter, 4 layers", True)
    tensors = weights("infvsr/infvsr_visual_guidance")
    del tensors["visual_encoder.norm.bias"]
    tensors |= {"tag_head.weight": torch.zeros(2), "visual_encoder.layers.0.blocks.1.attn_mask": torch.zeros(2)}
    save_file(tensors, tmp_path / "ram.safetensors")
    found = inspect_checkpoint(tmp_path / "ram.safetensors")
    assert (found.misfit.missing, found.misfit.unexpected) == (("visual_encoder.norm.bias",), ())


def test_missing_unexpected_and_misshapen_are_listed(tmp_path: Path) -> None:
    tensors = weights("wan/wan_dit_original")
    del tensors["blocks.1.norm3.bias"]
    tensors["blocks.0.cross_attn.k_img.weight"] = torch.zeros(40, 40)
    tensors["head.head.bias"] = torch.zeros(7)
    save_file(tensors, tmp_path / "i2v.safetensors")
    found = inspect_checkpoint(tmp_path / "i2v.safetensors", 64, 96)
    assert not found.is_loadable
    assert found.misfit.missing == ("blocks.1.norm3.bias",)
    assert found.misfit.unexpected == ("blocks.0.cross_attn.k_img.weight",)
    assert found.misfit.misshapen == ("head.head.bias is [7], not [24]",)
    assert "1 missing: blocks.1.norm3.bias" in render(found)


def test_a_longlive_pickle_and_its_adapter(tmp_path: Path) -> None:
    folder = tmp_path / "LongLive-1.3B"
    folder.mkdir()
    base = {f"model.{name}": tensor for name, tensor in weights("longlive/lora_call").items()}
    torch.save({"generator": base, "step": 7}, folder / "longlive_base.pt")
    torch.save({"generator_lora": weights("longlive/lora_call", "lora/")}, folder / "lora.pt")
    found = inspect_checkpoint(folder / "longlive_base.pt", 64, 96)
    assert (found.what, found.is_loadable) == ("wan-dit", True)
    assert found.licence is not None
    assert "CC-BY-NC-SA" in found.licence
    adapter = inspect_checkpoint(folder / "lora.pt")
    assert (adapter.what, adapter.form, adapter.is_loadable) == ("lora", "peft", True)
    assert (adapter.config["rank"], adapter.config["layers"]) == (4, 20)
    assert adapter.session is None
    save_file(weights("wan/wan_vae"), folder / "vae.safetensors")
    assert inspect_checkpoint(folder / "vae.safetensors", 64, 96).licence is None, "a VAE is not LongLive's"


def test_a_model_card_beside_the_file_names_the_licence(tmp_path: Path) -> None:
    save_file(weights("wan/wan_umt5"), tmp_path / "model.safetensors")
    assert inspect_checkpoint(tmp_path).licence is None
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    assert inspect_checkpoint(tmp_path).licence == "apache-2.0 (README.md)"
    save_file(weights("wan/wan_umt5"), tmp_path / "model.safetensors", {"license": "MIT", "name": "small encoder"})
    found = inspect_checkpoint(tmp_path)
    assert (found.licence, found.name) == ("MIT", "small encoder")


def test_what_is_none_of_ours(tmp_path: Path) -> None:
    save_file({"fc.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    found = inspect_checkpoint(tmp_path / "other.safetensors")
    assert (found.what, found.is_loadable) == ("unknown", False)
    assert "1 unexpected: fc.weight" in render(found)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(BadRequest, match=r"notes.txt: weights end in .safetensors, .pt, .pth, .bin"):
        inspect_checkpoint(tmp_path / "notes.txt")


def test_sizes_of_the_released_models_are_read_off_their_shapes() -> None:
    with torch.device("meta"):
        assert infer_dit(WanModel(WAN_1_3B).state_dict()) == WAN_1_3B
        assert infer_vae(WanVAE(WAN21_VAE).state_dict()) == WAN21_VAE


def test_bytes_of_a_released_session() -> None:
    """longlive.md §2: K/V 3.45 GB, cross 94 MB, clean latents 7.8 MB, decoder 151,328 values a latent pixel."""
    dit = dit_session(WAN_1_3B, 480, 832, torch.bfloat16).parts
    assert dit == {
        "self-attention cache": 30 * 2 * 12 * 1560 * 1536 * 2,
        "text keys and values": 30 * 2 * 512 * 1536 * 2,
        "prompt embedding": 512 * 4096 * 2,
        "clean latents": 39 * 16 * 60 * 104 * 2,
    }
    assert [human(size) for size in dit.values()] == ["3.45 GB", "94.37 MB", "4.19 MB", "7.79 MB"]
    vae = vae_session(WAN21_VAE, 480, 832, torch.bfloat16).parts
    assert vae["decoder history"] == 151_328 * 60 * 104 * 2
    assert human(vae["decoder history"]) == "1.89 GB"
    assert vae["encoder history"] / 2**30 == pytest.approx(1.04, abs=0.01)


def test_retaining_heads_alone_and_beside_their_model(tmp_path: Path) -> None:
    whole = weights("locret/locret_llama_gqa")
    heads = {key: tensor for key, tensor in whole.items() if ".fc" in key}
    torch.save(heads, tmp_path / "heads.bin")
    alone = inspect_checkpoint(tmp_path / "heads.bin")
    assert (alone.what, alone.is_loadable, alone.licence) == ("retaining-heads", True, None)
    assert alone.config == {"layers": 2, "heads": 2, "width": 40, "features": 64}
    save_file(whole, tmp_path / "whole.safetensors")
    both = inspect_checkpoint(tmp_path / "whole.safetensors")
    assert (both.what, both.is_loadable) == ("lm", True)
    assert both.name.endswith("of cache a token, retaining heads (Locret)")
    del whole["model.layers.1.self_attn.fc2.weight"], whole["model.norm.weight"]
    save_file(whole, tmp_path / "part.safetensors")
    part = inspect_checkpoint(tmp_path / "part.safetensors")
    assert part.misfit.missing == ("model.norm.weight", "layers.1.self_attn.fc2.weight")
