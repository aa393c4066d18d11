"""Language models from their published folders: config.json, weights by transformers' keys, tokens that end a text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from riverrun.models.base import BadRequest
from riverrun.models.text.causal_lm import CausalLM
from riverrun.models.text.lm_config import LMConfig
from riverrun.models.weights import load_frozen, locate, read


def lm_keys(tensors: Mapping[str, Tensor], config: LMConfig) -> dict[str, Tensor]:
    """Any published form -> `CausalLM`'s names.

    `weights.read` takes `model.` off a file where every key has it, which tied models' do. Tied models may hold the
    embedding twice, old ones the rotary frequencies; both are left out.
    """
    bare = not any(key.startswith("model.") for key in tensors)
    named = {f"model.{key}" if bare and key != "lm_head.weight" else key: value for key, value in tensors.items()}
    if config.tied:
        named.pop("lm_head.weight", None)
    return {key: value for key, value in named.items() if not key.endswith("rotary_emb.inv_freq")}


def read_config(source: str | Path, config: str | Path | None = None) -> dict[str, Any]:
    """The config.json given, or the one beside the weights. Raises BadRequest if there is none."""
    path = locate(source if config is None else config)
    file = path / "config.json" if path.is_dir() else path if config is not None else path.parent / "config.json"
    if not file.is_file():
        raise BadRequest(f"a language model needs its config.json; {path} has none beside it, name one")
    return json.loads(file.read_text())


def stop_ids(source: str | Path, config: Mapping[str, Any]) -> frozenset[int]:
    """Tokens that end a text: `eos_token_id` of the config and of generation_config.json beside the weights."""
    path = locate(source)
    file = (path if path.is_dir() else path.parent) / "generation_config.json"
    stated = json.loads(file.read_text()) if file.is_file() else {}
    found: set[int] = set()
    for value in (config.get("eos_token_id"), stated.get("eos_token_id")):
        found |= set(value if isinstance(value, list) else [] if value is None else [value])
    return frozenset(found)


def load_lm(
    source: str | Path, config: Mapping[str, Any], *, dtype: torch.dtype, device: torch.device | str
) -> CausalLM:
    """The model with these weights, on `device`. Raises BadRequest if they don't fit its config."""
    sizes = LMConfig.read(config)
    with torch.device("meta"):
        model = CausalLM(sizes).eval()
    load_frozen(model, lm_keys(read(source), sizes), device, dtype)
    return model
