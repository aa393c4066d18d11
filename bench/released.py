"""Every method at the size it was released in, on the meta device: names, shapes and bytes, and nothing allocated.

Sizes stand where the model's own code has them; those of language models, which come with their config.json, here.
Weights and caches are counted in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from riverrun.bench.report import Cell, table
from riverrun.kernels.policies import Full, PastQueue, PlannedPolicy
from riverrun.models.generation.ca2vdm import SKY_TIMELAPSE
from riverrun.models.generation.ca2vdm_memory import FrameCaches
from riverrun.models.generation.ca2vdm_net import CausalSTDiT2, STDiTConfig
from riverrun.models.generation.ca2vdm_sizes import CHUNK, PAST, clip_session
from riverrun.models.generation.easycontrol_conditions import ConditionLoRAs
from riverrun.models.generation.flux import FLUX_DEV, FluxTransformer
from riverrun.models.generation.flux_sizes import condition_session
from riverrun.models.generation.flux_vae import FLUX_VAE, FluxVAE
from riverrun.models.generation.vidgpt import XL_2_TEXT, ViDGPTOptions
from riverrun.models.geometry.sizes import geometry_session
from riverrun.models.geometry.vggt import VGGT, VGGTConfig
from riverrun.models.super_resolution.guidance import VisualGuidance
from riverrun.models.super_resolution.infvsr import INFVSR_DIT
from riverrun.models.super_resolution.restorer import Restorer
from riverrun.models.super_resolution.swin import SWIN_L
from riverrun.models.text.causal_lm import CausalLM
from riverrun.models.text.decoding import text_cache
from riverrun.models.text.lm_config import LMConfig
from riverrun.models.text.locret import RetainingLM, Retention
from riverrun.models.wan.dit import WAN_1_3B, WanModel
from riverrun.models.wan.sizes import dit_session, human, vae_session
from riverrun.models.wan.vae import WAN21_VAE, WanVAE

DTYPE, CONTEXT = torch.bfloat16, 4096
HEIGHT, WIDTH = 480, 832
LM_SIZES: Mapping[str, Mapping[str, Any]] = {
    "Qwen2.5-7B": {"model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944}
    | {"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4},
    "Qwen3-8B": {"model_type": "qwen3", "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288}
    | {"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
    "Llama-3.1-8B": {"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336}
    | {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8},
}


@dataclass(frozen=True)
class Released:
    """tensors, values: of all weights together. parts: bytes a session keeps between steps. size: for which."""

    tensors: int
    values: int
    parts: Mapping[str, int]
    size: str

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def released(modules: Sequence[nn.Module], parts: Mapping[str, int], size: str) -> Released:
    states = [module.state_dict() for module in modules]
    values = sum(tensor.numel() for state in states for tensor in state.values())
    return Released(sum(len(state) for state in states), values, parts, size)


def longlive() -> Released:
    decoder = vae_session(WAN21_VAE, HEIGHT, WIDTH, DTYPE).parts["decoder history"]
    parts = {**dit_session(WAN_1_3B, HEIGHT, WIDTH, DTYPE).parts, "decoder history": decoder}
    return released([WanModel(WAN_1_3B), WanVAE(WAN21_VAE)], parts, f"{WIDTH}x{HEIGHT}")


def infvsr() -> Released:
    dit = WanModel(INFVSR_DIT).to(DTYPE)
    factor, context = WAN21_VAE.spatial_factor, INFVSR_DIT.text_dim + 2 * INFVSR_DIT.num_layers * INFVSR_DIT.dim
    parts = {
        "self-attention cache": Restorer(dit).open((HEIGHT // factor, WIDTH // factor), device="meta").cache.nbytes
    }
    parts |= vae_session(WAN21_VAE, HEIGHT, WIDTH, DTYPE).parts
    parts["reference tokens and keys"] = INFVSR_DIT.text_len * context * DTYPE.itemsize
    return released([dit, WanVAE(WAN21_VAE), VisualGuidance(SWIN_L)], parts, f"{WIDTH}x{HEIGHT} out")


def ca2vdm() -> Released:
    return _clips(SKY_TIMELAPSE, PastQueue(PAST, CHUNK), f"256x256, {PAST} + {CHUNK} frames")


def vidgpt() -> Released:
    frames = ViDGPTOptions().frames
    return _clips(XL_2_TEXT, Full(frames), f"256x256, {frames} frames, no guidance")


def _clips(config: STDiTConfig, policy: PlannedPolicy, size: str) -> Released:
    caches = FrameCaches.empty(config, policy, dtype=DTYPE, device="meta")
    parts = {f"{cache.spec.name} cache": cache.nbytes for cache in caches.all()}
    if config.caption_channels:
        parts["caption"] = clip_session(config, DTYPE.itemsize, policy.capacity)["caption"]
    return released([CausalSTDiT2(config)], parts, size)


def easycontrol() -> Released:
    parts = condition_session(FLUX_DEV, 1024, 1024, DTYPE).parts
    modules = FluxTransformer(FLUX_DEV), FluxVAE(FLUX_VAE), ConditionLoRAs(FLUX_DEV, rank=128, count=1)
    return released(modules, parts, "one subject of 512x512")


def infinitevggt() -> Released:
    config = VGGTConfig()
    return released([VGGT(config)], geometry_session(config, 392, 518, DTYPE).parts, "518x392")


def jacobi() -> Released:
    return _text("Qwen2.5-7B")


def wedlm() -> Released:
    return _text("Qwen3-8B")


def _text(name: str) -> Released:
    model = CausalLM(LMConfig.read({**LM_SIZES[name], "max_position_embeddings": 32768})).to(DTYPE)
    return released([model], {"cache": text_cache(model, CONTEXT).nbytes}, f"{name}, {CONTEXT:,} tokens")


def locret() -> Released:
    """At the budget of the paper's Llama runs."""
    model = RetainingLM(LMConfig.read({**LM_SIZES["Llama-3.1-8B"], "max_position_embeddings": 131072})).to(DTYPE)
    retention = Retention(budget=16384, chunk=1024)
    parts = {"cache with scores": retention.cache(model, reach=1).nbytes}
    return released([model], parts, f"Llama-3.1-8B, budget {retention.budget:,}")


METHODS: Mapping[str, Callable[[], Released]] = {
    "LongLive": longlive,
    "Ca2-VDM": ca2vdm,
    "ViD-GPT": vidgpt,
    "EasyControl": easycontrol,
    "InfVSR": infvsr,
    "InfiniteVGGT": infinitevggt,
    "Jacobi Forcing": jacobi,
    "WeDLM": wedlm,
    "Locret": locret,
}


def all_released() -> dict[str, Released]:
    """By method. Takes seconds and no memory."""
    with torch.device("meta"):
        return {name: build() for name, build in METHODS.items()}


def show(found: Mapping[str, Released]) -> str:
    """A row a method."""
    rows: list[list[Cell]] = []
    for name, one in found.items():
        parts = ", ".join(f"{part} {human(size)}" for part, size in one.parts.items())
        weights = human(one.values * DTYPE.itemsize)
        rows.append([name, one.tensors, f"{one.values / 1e9:.2f} B", weights, one.size, human(one.total), parts])
    columns = ["method", "tensors", "values", "weights", "a session of", "keeps", "of which"]
    return table(columns, rows)
