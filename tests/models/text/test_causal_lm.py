"""One class for four architectures: against transformers', with and without a cache, from published folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from riverrun.models.base import BadRequest
from riverrun.models.inspect import inspect_checkpoint
from riverrun.models.text.causal_lm import CausalLM, WholeMemory
from riverrun.models.text.decoding import text_cache
from riverrun.models.text.lm_config import LMConfig
from riverrun.models.text.lm_sizes import infer_lm
from riverrun.models.text.lm_weights import load_lm, read_config, stop_ids
from riverrun.models.text.packed import Rows, feed

SIZES = {
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
}
LLAMA3 = {
    "rope_theta": 5e5,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 6, "long_factor": [1, 1.2, 1.3, 1.4, 2, 5]}
TABLE: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True, "attention_bias": True, "rope_parameters": LLAMA3}),
    ("qwen2", {}),
    ("qwen3", {"head_dim": 16}),
    ("phi3", {"original_max_position_embeddings": 32, "rope_parameters": LONG, "pad_token_id": 0, "eos_token_id": 1}),
]
NAMES = ["llama", "llama tied, scaled", "qwen2", "qwen3", "phi3 longrope"]


def theirs(family: str, values: dict[str, Any]) -> Any:
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(family, **SIZES, **values)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def save(model: Any, folder: Path) -> None:
    weights = {name: t.clone() for name, t in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        weights.pop("lm_head.weight")
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()))


@pytest.mark.parametrize(("family", "values"), TABLE, ids=NAMES)
@torch.no_grad()
def test_equals_transformers(family: str, values: dict[str, Any], tmp_path: Path) -> None:
    model = theirs(family, values)
    save(model, tmp_path)
    ours = load_lm(tmp_path, read_config(tmp_path), dtype=torch.float32, device="cpu")
    ids = torch.randint(0, 64, (2, 90))
    found = inspect_checkpoint(tmp_path)
    assert (found.what, found.is_loadable) == ("lm", True), found.misfit
    assert found.name.startswith(f"language model ({family}), 2 layers")
    got = ours(ids, WholeMemory(ours.config.rotary, torch.arange(90)))
    torch.testing.assert_close(got, model(ids).logits, atol=1e-5, rtol=1e-5)


def test_packed_sessions_equal_single_ones() -> None:
    """Different lengths, fills and masks in one forward; a call's own tokens see each other as the mask says."""
    torch.manual_seed(0)
    model = CausalLM(LMConfig.read({"model_type": "qwen3", "head_dim": 12, **SIZES})).eval()
    texts = [torch.randint(0, 64, (n,)).tolist() for n in (9, 30, 17)]
    whole = [
        model(torch.tensor([text]), WholeMemory(model.config.rotary, torch.arange(len(text))))[0] for text in texts
    ]
    caches = [text_cache(model, 64) for _ in texts]
    for start, stop in ((0, 4), (4, 5), (5, 40)):
        calls = [Rows(cache, text[start:stop]) for cache, text in zip(caches, texts, strict=True)]
        for got, all_rows in zip(feed(model, calls), whole, strict=True):
            torch.testing.assert_close(got, all_rows[start:stop], atol=1e-5, rtol=1e-5)
    draft = texts[0] + texts[0][-2:]  # two candidates for the last two tokens, side by side
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    mask[2:, :2] = False
    caches[0].truncate(7)
    got = feed(model, [Rows(caches[0], draft[7:], [7, 8, 7, 8], mask, logits=2)])[0]
    torch.testing.assert_close(got, whole[0][7:], atol=1e-5, rtol=1e-5)


def test_a_failed_forward_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = CausalLM(LMConfig.read({"model_type": "llama", **SIZES})).eval()
    cache, small = text_cache(model, 64), text_cache(model, 8)
    feed(model, [Rows(cache, [1, 2, 3])])
    with pytest.raises(ValueError, match="cache is full: 9 slots wanted, capacity 8"):
        feed(model, [Rows(cache, [4]), Rows(small, [1] * 9)])
    with monkeypatch.context() as patch:
        patch.setattr(model, "logits", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            feed(model, [Rows(cache, [4, 5])])
    assert (cache.cursor, small.cursor) == (3, 0)
    expected = model(torch.tensor([[1, 2, 3, 4]]), WholeMemory(model.config.rotary, torch.arange(4)))[0, -1:]
    torch.testing.assert_close(feed(model, [Rows(cache, [4])])[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "gpt2"}, "model_type must be one of llama, qwen2, qwen3, phi3, wedlm, got 'gpt2'"),
        ({"model_type": "llama", "hidden_act": "gelu"}, "hidden_act must be silu"),
        ({"model_type": "llama", "mlp_bias": True}, "mlp_bias"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "sliding window"),
        ({"model_type": "phi3", "sliding_window": 2047}, "sliding window"),
        (
            {"model_type": "llama", "rope_scaling": {"type": "yarn", "factor": 4}},
            "default, llama3, longrope, got 'yarn'",
        ),
        ({"model_type": "phi3", "rope_scaling": {"type": "longrope", "long_factor": [1.0]}}, "must hold 6 numbers"),
    ],
)
def test_variants_that_are_not_built_in(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        LMConfig.read(SIZES | values)


def test_wedlm_is_qwen2_or_qwen3() -> None:
    seven = LMConfig.read({"model_type": "wedlm", "attention_bias": True, "mask_token_id": 5, **SIZES})
    eight = LMConfig.read({"model_type": "wedlm", "attention_bias": False, "qk_norm": True, **SIZES})
    assert (seven.qkv_bias, seven.out_bias, seven.qk_norm, seven.mask_token_id) == (True, False, False, 5)
    assert (eight.qkv_bias, eight.out_bias, eight.qk_norm, eight.mask_token_id) == (False, False, True, 151_665)


def test_folders(tmp_path: Path) -> None:
    """Stop tokens of both files; strict loading says what is wrong; a missing config is said."""
    save(theirs("qwen2", {"eos_token_id": 3}), tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 7]}))
    config = read_config(tmp_path)
    assert stop_ids(tmp_path, config) == {3, 7}
    with pytest.raises(BadRequest, match=r"2 unexpected|6 unexpected"):
        load_lm(tmp_path, config | {"model_type": "llama"}, dtype=torch.float32, device="cpu")
    save_file({"model.embed_tokens.weight": torch.zeros(3, 2)}, tmp_path / "model.safetensors")
    assert "self_attn.o_proj.weight" in str(inspect_checkpoint(tmp_path).misfit)
    (tmp_path / "config.json").unlink()
    with pytest.raises(BadRequest, match=r"needs its config\.json"):
        read_config(tmp_path)


RELEASED: list[
    tuple[dict[str, Any], int, int]
] = [  # config, parameters, bytes of a token's keys and values in bfloat16
    (
        {"model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944}
        | {"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4},
        7_615_616_512,
        57_344,
    ),
    (
        {"model_type": "qwen3", "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288}
        | {"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
        8_190_735_360,
        147_456,
    ),
    (
        {"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336}
        | {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8},
        8_030_261_248,
        131_072,
    ),
    (
        {"model_type": "phi3", "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192}
        | {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32},
        3_821_079_552,
        393_216,
    ),
]


@pytest.mark.parametrize(("sizes", "parameters", "a_token"), RELEASED, ids=["7B", "8B", "Llama 3.1", "Phi-3 mini"])
def test_released_sizes(sizes: dict[str, Any], parameters: int, a_token: int) -> None:
    config = LMConfig.read(sizes | {"max_position_embeddings": 32768})
    with torch.device("meta"):
        model = CausalLM(config)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert config.kv_bytes(1, torch.bfloat16) == a_token
    family, found = infer_lm(model.state_dict())
    assert (family, found.hidden_size, found.intermediate_size) == (
        sizes["model_type"],
        config.hidden_size,
        config.intermediate_size,
    )
    assert found.kv_bytes(1, torch.bfloat16) == a_token
