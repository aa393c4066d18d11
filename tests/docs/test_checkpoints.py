"""What docs/checkpoints.md shows is loaded as it stands, with small random weights under the released names."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from transformers import T5Tokenizer

import riverrun
from riverrun.actors.loading import build
from riverrun.configs import find, load_model, load_service
from riverrun.graphs.graph import load_graph
from riverrun.models.base import Control
from riverrun.models.generation.longlive_state import LongLiveParams
from riverrun.models.inspect import inspect_checkpoint
from riverrun.models.wan.dit import WAN_1_3B, WanConfig, WanModel
from riverrun.models.wan.sizes import dit_session, vae_session
from riverrun.models.wan.vae import WAN21_VAE, VAEConfig, WanVAE

ROOT = Path(riverrun.__file__).parent
PAGE = (ROOT / "docs" / "checkpoints.md").read_text()
YAML = dict(
    zip(
        ("longlive.yaml", "umt5-xxl.yaml", "film.yaml", "service.yaml"),
        re.findall(r"```yaml\n(.*?)```", PAGE, re.S),
        strict=True,
    )
)
DIT = WanConfig(
    dim=24, ffn_dim=32, num_heads=2, num_layers=2, in_dim=4, out_dim=4, freq_dim=16, text_dim=32, text_len=512
)
VAE = VAEConfig(
    dim=3,
    z_dim=4,
    dim_mult=(1, 2, 2, 2),
    num_res_blocks=1,
    temporal_downsample=(False, True, True),
    mean=(0.0,) * 4,
    std=(1.0,) * 4,
)


def repository(cache: Path, name: str) -> Path:
    """An empty repository in a hub cache, as the hub's client lays it out."""
    folder = cache / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(snapshot.name)
    return snapshot


def half(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}


def adapter(model: WanModel) -> dict[str, torch.Tensor]:
    """PEFT's two matrices for every linear layer of the blocks, as longlive.md §9 has them."""
    pairs = {}
    for name, layer in model.named_modules():
        if name.startswith("blocks.") and isinstance(layer, torch.nn.Linear):
            at = f"base_model.model.{name}.lora"
            pairs[f"{at}_A.weight"] = 0.1 * torch.randn(2, layer.in_features)
            pairs[f"{at}_B.weight"] = 0.1 * torch.randn(layer.out_features, 2)
    return pairs


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    cache = tmp_path_factory.mktemp("hub")
    longlive = repository(cache, "Efficient-Large-Model/LongLive-1.3B") / "models"
    longlive.mkdir()
    model = WanModel(DIT)
    torch.save(
        {"generator": half({f"model.{n}": t for n, t in model.state_dict().items()})}, longlive / "longlive_base.pt"
    )
    torch.save({"generator_lora": half(adapter(model)), "step": 1}, longlive / "lora.pt")
    wan = repository(cache, "Wan-AI/Wan2.1-T2V-1.3B")
    torch.save(WanVAE(VAE).state_dict(), wan / "Wan2.1_VAE.pth")
    encoder = {
        n[2:]: t for n, t in load_file(ROOT / "tests/fixtures/wan/wan_umt5.safetensors").items() if n[:2] == "w/"
    }
    torch.save(half(encoder), wan / "models_t5_umt5-xxl-enc-bf16.pth")
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁a", -1.0), ("▁red", -1.0), ("▁box", -1.0)]
    T5Tokenizer(vocab=words, extra_ids=0).save_pretrained(wan / "google" / "umt5-xxl")
    return cache


@pytest.fixture
def folder(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's files in a folder of their own, the working directory; no way to the hub but its cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name, text in YAML.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "dit.json").write_text(json.dumps(dataclasses.asdict(DIT)))
    (tmp_path / "vae.json").write_text(json.dumps(dataclasses.asdict(VAE)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_s_models_make_a_block(folder: Path) -> None:
    service = load_service("service.yaml")
    small = ["args.weights_config=dit.json", "args.vae_config=vae.json", "args.height=32", "args.width=48"]
    model_config = load_model(service.models[0], [*small, "args.device=cpu"])
    encoder_config = load_model(service.models[1], ["args.device=cpu"])
    assert model_config.encoder == encoder_config.name
    assert {stage.model for stage in load_graph(find(service.graphs[0], folder)).stages} == {model_config.name}

    model, encoder = build(model_config), build(encoder_config)
    rows = encoder.encode(["a red box"])
    assert rows.shape == (1, 512, 32)
    assert rows[0].any(axis=1).sum() == 4, "three words and the end token"
    params = LongLiveParams("a red box")
    state = model.open(params, 0)
    model.control(state, Control(0, "prompt", "a red box", rows[0]))
    [[chunk]] = model.step([state])
    assert chunk.data.shape == (9, 32, 48, 3)
    assert np.ptp(chunk.data) > 0
    without = build(load_model("longlive.yaml", [*small, "args.device=cpu", "args.lora=null"]))
    name = "blocks.0.self_attn.q.weight"
    merged, base = (dict(made.model.named_parameters())[name] for made in (model, without))
    assert merged.dtype == torch.bfloat16
    assert not torch.equal(merged, base), "the adapter is in"


def test_the_check_the_page_names_passes(folder: Path) -> None:
    (name,) = re.findall(r"`riverrun models check ([^` ]+)`", PAGE)
    found = inspect_checkpoint(name)
    assert found.is_loadable
    assert "CC-BY-NC-SA-4.0" in str(found.licence)


def test_the_page_s_bytes() -> None:
    """The table, from the shapes of the released models."""
    rows = re.findall(r"\| (\d+)x(\d+) \| ([\d.]+) GB \| ([\d.]+) GB \| ([\d.]+) GB \| ([\d.]+) GB \|", PAGE)
    assert len(rows) == 3
    for width, height, *said in rows:
        dit = dit_session(WAN_1_3B, int(height), int(width), torch.bfloat16)
        history = vae_session(WAN21_VAE, int(height), int(width), torch.bfloat16).parts["decoder history"]
        prompt = dit.parts["text keys and values"] + dit.parts["prompt embedding"]
        found = dit.parts["self-attention cache"], prompt, history, dit.total + history
        assert [f"{size / 1e9:.2f}" for size in found] == said
