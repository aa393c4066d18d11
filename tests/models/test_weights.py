"""Checkpoints in every wrapping they are published in, adapters, and what is said of those that don't fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor, nn

from riverrun.models.base import BadRequest, Unavailable
from riverrun.models.weights import ADAPTER_WRAPPERS, load_strict, locate, merge_lora, read, weight_files

TENSORS = {"blocks.0.weight": torch.arange(6.0).view(2, 3), "head.bias": torch.ones(2)}


def same(found: dict[str, Tensor], expected: dict[str, Tensor] = TENSORS) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in TENSORS.items()}


@pytest.mark.parametrize(
    "held",
    [
        TENSORS,
        {"generator": prefixed("model."), "step": 3},
        {"generator_ema": prefixed("model._fsdp_wrapped_module."), "optimizer": {"lr": 0.1}},
        {"model_state": prefixed("module.")},
        {"state_dict": prefixed("model.diffusion_model.")},
        {"model": {"state_dict": prefixed("_orig_mod.")}},
        {"generator": TENSORS, "generator_ema": {"other": torch.zeros(1)}},
    ],
    ids=["plain", "longlive", "fsdp ema", "module", "diffusion_model", "twice", "generator first"],
)
def test_pickles_are_unwrapped(tmp_path: Path, held: dict) -> None:
    torch.save(held, tmp_path / "some.pt")
    assert same(read(tmp_path / "some.pt"))


def test_the_older_pickle_format_reads_too(tmp_path: Path) -> None:
    torch.save({"model": TENSORS}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(read(tmp_path / "old.pth"))


def test_a_prefix_only_some_keys_have_stays(tmp_path: Path) -> None:
    mixed = {"model.a": torch.zeros(1), "b": torch.zeros(1)}
    save_file(mixed, tmp_path / "mixed.safetensors")
    assert same(read(tmp_path / "mixed.safetensors"), mixed)


class Malicious:
    def __reduce__(self) -> tuple:
        return print, ("code ran",)


def test_pickles_with_code_are_refused_and_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": TENSORS, "hook": Malicious()}, tmp_path / "bad.pt")
    with pytest.raises(BadRequest, match=r"bad.pt is damaged, or holds more than tensors and is refused"):
        read(tmp_path / "bad.pt")
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pt"])
def test_damaged_files_say_so(tmp_path: Path, name: str) -> None:
    whole = tmp_path / f"whole{Path(name).suffix}"
    torch.save(TENSORS, whole) if whole.suffix == ".pt" else save_file(TENSORS, whole)
    (tmp_path / name).write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(BadRequest, match="cut"):
        read(tmp_path / name)


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"step": 3, "notes": ["x"]}, tmp_path / "log.pt")
    with pytest.raises(BadRequest, match="found no tensors by name, nor any of generator"):
        read(tmp_path / "log.pt")


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    names = list(TENSORS)
    for i, name in enumerate(names):
        save_file({name: TENSORS[name]}, tmp_path / f"part-{i}.safetensors")
    index = {"weight_map": {name: f"part-{i}.safetensors" for i, name in enumerate(names)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert same(read(tmp_path))
    (tmp_path / "part-1.safetensors").unlink()
    with pytest.raises(BadRequest, match=r"names 1 files that aren't there: part-1.safetensors"):
        read(tmp_path)


def test_a_folder_with_one_candidate_reads_and_others_ask(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "vae.pth")
    save_file(TENSORS, tmp_path / "diffusion_pytorch_model.safetensors")
    assert same(read(tmp_path)), "safetensors are preferred to pickles beside them"
    save_file(TENSORS, tmp_path / "more.safetensors")
    with pytest.raises(BadRequest, match=r"2 .safetensors files, name one: diffusion_pytorch_model.safetensors, more"):
        weight_files(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadRequest, match="holds no weights"):
        weight_files(tmp_path / "empty")


def test_meta_reads_shapes_and_dtypes_only(tmp_path: Path) -> None:
    half = {name: tensor.to(torch.bfloat16) for name, tensor in TENSORS.items()}
    save_file(half, tmp_path / "half.safetensors")
    torch.save(half, tmp_path / "half.pt")
    for name in ("half.safetensors", "half.pt"):
        found = read(tmp_path / name, device="meta")
        assert {key: (t.shape, t.dtype) for key, t in found.items()} == {
            key: (t.shape, t.dtype) for key, t in half.items()
        }
        assert all(tensor.is_meta for tensor in found.values())


def test_a_dtype_we_do_not_know_is_named(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2, dtype=torch.uint16)}, tmp_path / "odd.safetensors")
    with pytest.raises(BadRequest, match="a tensor is of dtype U16; there are F64, F32"):
        read(tmp_path / "odd.safetensors", device="meta")


def test_neither_path_nor_hub_name() -> None:
    for source in ("nowhere/at/all", "org/missing.safetensors", "/no/such.pt"):
        with pytest.raises(BadRequest, match=f"no such file or folder: {source}"):
            locate(source)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An offline hub cache that holds org/name."""
    repo = tmp_path / "models--org--name"
    snapshot = repo / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    (snapshot / "models").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(snapshot.name)
    torch.save({"generator": TENSORS}, snapshot / "models" / "base.pt")
    save_file(TENSORS, snapshot / "model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return snapshot


def test_hub_names_are_found_in_the_local_cache(hub: Path) -> None:
    assert locate("org/name") == hub
    assert same(read("org/name"))
    assert same(read("org/name:models/base.pt"))
    assert locate("org/name:models") == hub / "models"


def test_hub_names_that_are_not_there(hub: Path) -> None:
    with pytest.raises(Unavailable, match="org/other isn't in the local hub cache and the hub can't be reached"):
        locate("org/other")
    with pytest.raises(BadRequest, match=r"holds no lora.pt"):
        locate("org/name:lora.pt")


def test_lora_is_merged_by_rank_or_alpha(tmp_path: Path) -> None:
    weight = torch.randn(4, 3)
    down, up = torch.randn(2, 3), torch.randn(4, 2)
    adapter = {
        "base_model.model.blocks.0.q.lora_A.weight": down,
        "base_model.model.blocks.0.q.lora_B.weight": up,
    }
    torch.save({"generator_lora": adapter, "critic_lora": {}, "step": 1}, tmp_path / "lora.pt")
    read_back = read(tmp_path / "lora.pt", wrappers=ADAPTER_WRAPPERS)
    tensors = {"blocks.0.q.weight": weight, "blocks.0.q.bias": torch.zeros(4)}
    merged = merge_lora(tensors, read_back)
    torch.testing.assert_close(merged["blocks.0.q.weight"], weight + up @ down)
    assert merged["blocks.0.q.bias"] is tensors["blocks.0.q.bias"]
    doubled = merge_lora(tensors, read_back, alpha=4)
    torch.testing.assert_close(doubled["blocks.0.q.weight"], weight + 2 * up @ down)
    half = merge_lora({"blocks.0.q.weight": weight.bfloat16()}, read_back)
    assert half["blocks.0.q.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"x.lora_A.weight": (2, 3), "x.lora_B.weight": (4, 2)}, "changes 1 layers that aren't there: x.weight"),
        ({"q.lora_A.weight": (2, 3)}, "1 layers of the adapter lack their A or B: q.weight"),
        ({"q.lora_A.weight": (2, 5), "q.lora_B.weight": (4, 2)}, r"q.weight is \(4, 3\), the adapter's are"),
        ({"q.alpha": (1,)}, "'q.alpha' is no key of a LoRA adapter"),
    ],
)
def test_adapters_that_do_not_fit(adapter: dict[str, tuple[int, ...]], message: str) -> None:
    tensors = {name: torch.zeros(shape) for name, shape in adapter.items()}
    with pytest.raises(BadRequest, match=message):
        merge_lora({"q.weight": torch.zeros(4, 3)}, tensors)


def test_strict_loading_lists_all_three_kinds_of_misfit() -> None:
    module = nn.Linear(3, 2)
    with pytest.raises(BadRequest) as caught:
        load_strict(module, {"weight": torch.zeros(2, 4), "gain": torch.zeros(2)})
    assert str(caught.value) == (
        "the weights don't fit Linear: 1 missing: bias; 1 unexpected: gain; "
        "1 of another shape: weight is [2, 4], not [2, 3]"
    )


def test_strict_loading_fills_a_module_without_memory() -> None:
    with torch.device("meta"):
        module = nn.Linear(3, 2)
    load_strict(module, {"weight": torch.ones(2, 3).half(), "bias": torch.zeros(2).half()})
    assert module.weight.dtype == torch.float16
    assert module(torch.ones(1, 3).half()).tolist() == [[3, 3]]


def test_long_lists_are_cut() -> None:
    with pytest.raises(BadRequest, match=r"9 unexpected: a0, a1, a2, a3 and 5 more"):
        load_strict(nn.Identity(), {f"a{i}": torch.zeros(1) for i in range(9)})
