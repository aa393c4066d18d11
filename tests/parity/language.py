"""What the replays of both text methods share."""

from __future__ import annotations

import torch

from riverrun.kernels.cache import KVCache
from riverrun.models.text.causal_lm import CausalLM
from riverrun.models.text.lm_config import LMConfig
from riverrun.models.weights import load_strict
from riverrun.tests.parity.cases import Case


def language_model(case: Case) -> CausalLM:
    model = CausalLM(LMConfig.read(case.meta["config"])).eval()
    load_strict(model, case.tensors("w/"))
    return model


def filled(cache: KVCache, part: str, layer: int, count: int) -> torch.Tensor:
    """The first rows of a layer, [count, heads, head_dim]; fails if there are fewer."""
    assert count <= cache.cursor
    return cache.slots(part, layer)[0, :count]
