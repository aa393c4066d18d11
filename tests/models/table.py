"""The table of models: one row, and a model gets the whole contract of a stage tested (test_table.py).

Each row has tiny random weights, which it writes as files and loads as a service would.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from riverrun.kernels.policies import smallest_total
from riverrun.models import synthetic
from riverrun.models.base import Chunk, Control, StreamModel
from riverrun.models.generation.ca2vdm import Ca2VDM
from riverrun.models.generation.ca2vdm_net import CausalSTDiT2, STDiTConfig
from riverrun.models.generation.easycontrol import EasyControl
from riverrun.models.generation.easycontrol_conditions import ConditionLoRAs
from riverrun.models.generation.flux import FluxConfig, FluxTransformer
from riverrun.models.generation.flux_vae import FluxVAE, FluxVAEConfig
from riverrun.models.generation.longlive import LongLive
from riverrun.models.generation.vidgpt import ViDGPT
from riverrun.models.geometry.infinitevggt import InfiniteVGGT
from riverrun.models.geometry.vggt import VGGT, VGGTConfig
from riverrun.models.super_resolution.decoder import ConditionalDecoder, DecoderConfig
from riverrun.models.super_resolution.guidance import VisualGuidance
from riverrun.models.super_resolution.infvsr import InfVSR
from riverrun.models.super_resolution.swin import SwinConfig
from riverrun.models.text.causal_lm import CausalLM
from riverrun.models.text.lm_config import LMConfig
from riverrun.models.text.locret import RetainingLM
from riverrun.models.text.locret_stage import LocretModel
from riverrun.models.text.stage import LanguageModel
from riverrun.models.text.strategies import STRATEGIES
from riverrun.models.wan.dit import WanConfig, WanModel
from riverrun.models.wan.vae import VAEConfig, WanVAE

TICKS = 5625
"""From one input frame to the next: 16 frames a second."""


def no_chunks(number: int, turn: int = 0) -> list[Chunk]:
    """Of a model that takes no input there."""
    return []


@dataclass(frozen=True)
class Row:
    """One model of the table.

    build: writes its weights into a folder, and loads them. params: of a session. window: steps until nothing of what
    was kept at their start is left. number: which of several unlike sessions; turn: which round of input.
    given: what it is pushed once, at the start. feed: what it is pushed whenever it can't step.
    control: a control of that revision, of another value for each; None: it takes none. control_shows: it changes what
    the next step makes.
    first_prompt: the service sends it such a control before anything else.
    breaks: an object and its method that a step calls late. failure: whether a step that fails `poisons` its session
    or leaves it `unchanged`. wrong: parameters that no session can have, and what is said about them.
    holds: whether a session keeps, once a window is full, as many bytes as described, or at the most so many.
    beyond: bytes it may hold on top, of an input that has no bound (the ids of prompts and answer under way).
    length: steps after which a stream ends; None: it has no end. loose: names of what a State keeps that is no nearer
    than its input's rounding, made larger by random weights.
    """

    name: str
    build: Callable[[Path], StreamModel]
    window: int
    breaks: Callable[[Any], tuple[Any, str]]
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    given: Callable[[int], list[Chunk]] = no_chunks
    feed: Callable[[int, int], list[Chunk]] = no_chunks
    control: Callable[[int], Control] | None = None
    control_shows: bool = True
    first_prompt: bool = False
    failure: Literal["poisons", "unchanged"] = "poisons"
    wrong: tuple[tuple[Mapping[str, Any], str], ...] = ()
    holds: Literal["exactly", "at most"] = "exactly"
    beyond: int = 0
    length: int | None = None
    loose: tuple[str, ...] = ()


def embedded(rows: int, width: int) -> Callable[[int], Control]:
    """Prompts as the service sends them to a model that names an encoder."""

    def prompt(revision: int) -> Control:
        values = np.random.default_rng(revision).standard_normal((rows, width), dtype=np.float32)
        return Control(revision, "prompt", f"prompt {revision}", values)

    return prompt


def frames(port: str, size: tuple[int, int], count: int) -> Callable[[int, int], list[Chunk]]:
    """A video that drifts, without a cut; each session has its own."""

    def feed(number: int, turn: int) -> list[Chunk]:
        draw = np.random.default_rng(number)
        base, drift = draw.integers(60, 180, (*size, 3)), draw.normal(0, 0.4, (*size, 3))
        times = range(turn * count, (turn + 1) * count)
        data = np.stack([base + 20 * np.sin(drift * t / 3) for t in times]).clip(0, 255).astype(np.uint8)
        return [Chunk(port, data, pts=times[0] * TICKS, frame_ticks=TICKS, frames=count)]

    return feed


def save(folder: Path, name: str, module: nn.Module, sizes: Any = None, std: float | None = None) -> None:
    """Weights and sizes; std: of all values, where some begin at zero and would hide their layer's faults."""
    for parameter in module.parameters():
        if std is not None:
            nn.init.normal_(parameter, std=std)
    save_file(module.state_dict(), folder / f"{name}.safetensors")
    if sizes is not None:
        values = sizes if isinstance(sizes, Mapping) else dataclasses.asdict(sizes)
        (folder / f"{name}.json").write_text(json.dumps(values))


def files(folder: Path, **names: str) -> dict[str, str]:
    """Arguments for weights and their sizes: argument=file."""
    paths = {argument: str(folder / f"{name}.safetensors") for argument, name in names.items()}
    return paths | {f"{argument}_config": str(folder / f"{name}.json") for argument, name in names.items()}


# -- generation ------------------------------------------------------------------------------------------------

WAN = WanConfig(dim=24, ffn_dim=32, num_heads=2, num_layers=2, in_dim=4, out_dim=4, freq_dim=16, text_dim=8, text_len=5)
WAN_VAE = VAEConfig(
    dim=3,
    z_dim=4,
    dim_mult=(1, 2, 2, 2),
    num_res_blocks=1,
    temporal_downsample=(False, True, True),
    mean=(0.0,) * 4,
    std=(1.0,) * 4,
)


LONGLIVE: dict[str, Any] = {"height": 32, "width": 32, "window": 9, "steps": (1000, 500)}


def longlive(folder: Path) -> LongLive:
    save(folder, "dit", WanModel(WAN), WAN)
    save(folder, "vae", WanVAE(WAN_VAE), WAN_VAE)
    return LongLive(**files(folder, weights="dit", vae="vae"), **LONGLIVE, device="cpu")


CLIP = STDiTConfig(
    (4, 6), hidden_size=24, depth=2, num_heads=2, table_len=12, prefix_frames=3, caption_channels=8, text_len=5
)


def first_latents(number: int) -> list[Chunk]:
    data = np.random.default_rng(number).standard_normal((2, 4, 4, 6), dtype=np.float32)
    return [Chunk("first", data, 0, 1, len(data))]


def ca2vdm(**form: Any) -> Callable[[Path], Ca2VDM]:
    def build(folder: Path) -> Ca2VDM:
        config = dataclasses.replace(CLIP, **form)
        save(folder, "net", CausalSTDiT2(config), config, std=0.1)
        return Ca2VDM(**files(folder, weights="net"), chunk=2, past=5, steps=3, perturb_t=400, device="cpu")

    return build


def vidgpt(window: int | None) -> Callable[[Path], ViDGPT]:
    def build(folder: Path) -> ViDGPT:
        config = dataclasses.replace(CLIP, position="absolute", prefix_frames=0, mask_channel=False)
        save(folder, "net", CausalSTDiT2(config), config, std=0.1)
        return ViDGPT(**files(folder, weights="net"), chunk=2, frames=12, steps=3, window=window, device="cpu")

    return build


FLUX = FluxConfig(
    in_channels=16,
    num_layers=1,
    num_single_layers=1,
    attention_head_dim=12,
    num_attention_heads=2,
    joint_attention_dim=10,
    pooled_projection_dim=6,
    guidance_embeds=True,
    axes_dims_rope=(4, 4, 4),
)
FLUX_VAE = FluxVAEConfig(
    block_out_channels=(4, 4, 4, 4),
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=2,
    scaling_factor=0.36,
    shift_factor=0.1,
)


def easycontrol(folder: Path) -> EasyControl:
    save(folder, "flux", FluxTransformer(FLUX), FLUX)
    save(folder, "vae", FluxVAE(FLUX_VAE), FLUX_VAE)
    for port in ("subject", "depth"):
        save(folder, port, ConditionLoRAs(FLUX, 4, 1), std=1.0)
    conditions = {kind: {port: str(folder / f"{port}.safetensors")} for kind, port in CONDITIONS.items()}
    options: dict[str, Any] = {"height": 32, "width": 48, "max_pixels": 64 * 64, "cond_size": 32, "steps": 2}
    return EasyControl(**files(folder, weights="flux", vae="vae"), **conditions, **options, text_len=5, device="cpu")


CONDITIONS = {"subjects": "subject", "spatials": "depth"}


# -- the rest ----------------------------------------------------------------------------------------------------

SWIN = SwinConfig(img_size=16, patch_size=4, embed_dim=4, depths=(2, 1), num_heads=(1, 2), window_size=2)


CONDITIONAL = DecoderConfig(z_dim=4, width=6, latent_width=8, trunk=1, memory=2)


def infvsr(*parts: str) -> Callable[[Path], InfVSR]:
    """parts: beyond the three that every InfVSR has."""

    def build(folder: Path) -> InfVSR:
        save(folder, "dit", WanModel(WAN), WAN)
        save(folder, "vae", WanVAE(WAN_VAE), WAN_VAE)
        save(folder, "guidance", VisualGuidance(SWIN, WAN.text_dim), SWIN, std=0.1)
        save(folder, "decoder", ConditionalDecoder(CONDITIONAL), CONDITIONAL, std=0.1)
        more = files(folder, **{part: part for part in ("vae", "guidance", *parts)})
        return InfVSR(**files(folder, weights="dit"), **more, height=8, width=12, device="cpu")

    return build


GEOMETRY = VGGTConfig(
    image=56,
    dim=16,
    depth=3,
    heads=2,
    mlp_ratio=2.0,
    dino_depth=1,
    dino_heads=2,
    dino_mlp_ratio=2.0,
    camera_depth=2,
    camera_heads=2,
    camera_mlp_ratio=2.0,
    dpt_features=8,
    dpt_channels=(4, 8, 8, 8),
    dpt_layers=(0, 1, 1, 2),
    track=None,
)
BUDGET = smallest_total(GEOMETRY.depth, GEOMETRY.tokens(42, 56))


def infinitevggt(folder: Path) -> InfiniteVGGT:
    save(folder, "vggt", VGGT(GEOMETRY), GEOMETRY, std=0.2)
    return InfiniteVGGT(**files(folder, weights="vggt"), device="cpu")


LANGUAGE = {
    "model_type": "qwen3",
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
    "mask_token_id": 39,
}


def save_language(folder: Path, model: nn.Module) -> str:
    for parameter in model.parameters():  # logits far enough apart that rounding decides nothing
        parameter.data.mul_(3) if parameter.ndim > 1 else None
    save(folder, "config", model, LANGUAGE)
    return str(folder)


def language_model(folder: Path) -> LanguageModel:
    return LanguageModel(save_language(folder, CausalLM(LMConfig.read(LANGUAGE))), capacity=2048, device="cpu")


def locret(folder: Path) -> LocretModel:
    source = save_language(folder, RetainingLM(LMConfig.read(LANGUAGE), 16))
    return LocretModel(source, device="cpu", budget=12, chunk=9, stabilisers=4, local=5, slack=60)


SAMPLED = {"temperature": 0.8, "top_p": 0.9}


def questions(number: int, turn: int) -> list[Chunk]:
    ids = np.random.default_rng([number, turn]).integers(0, 38, 7)
    return [Chunk("prompt", ids, pts=0, frame_ticks=3600, frames=len(ids))]


def text(
    name: str,
    build: Callable[[Path], StreamModel],
    strategy: str,
    sampling: Mapping[str, Any] | None = None,
    **values: Any,
) -> Row:
    return Row(
        name,
        build,
        window=6,
        params={"strategy": strategy, "max_tokens": 20, "block": 6, "window": 5, **(sampling or {})},
        feed=questions,
        breaks=lambda model: (model.model.model.layers[1], "forward"),
        failure="unchanged",
        holds="at most",
        wrong=(({"strategy": "beam"}, "strategy must be one of"), ({"max_tokens": 0}, "max_tokens must be at least 1")),
        **values,
    )


def made_up(**params: Any) -> Row:
    return Row(
        "synthetic transform" if params else "synthetic source",
        lambda _: synthetic.Synthetic(),
        window=3,
        params={"height": 4, "width": 6, "state_bytes": 50, **params},
        control=lambda revision: Control(revision, "prompt", f"prompt {revision}"),
        control_shows=not params,
        breaks=lambda _: (synthetic, "_emit"),
        failure="unchanged",
        wrong=(({"height": 0}, r"height must be 1\.\.4096"), ({"prompt": " "}, "a text of at least one character")),
    )


CLIP_WRONG = (({"guidance": -1.0}, r"guidance must be 0\.\.100"), ({"chunks": 0}, "chunks must be at least 1"))
SIZES_WRONG = (({"prompt": "x", "height": 40}, "multiples of 16"), ({"prompt": "x", "width": 16000}, "at most"))


def clip(name: str, build: Callable[[Path], StreamModel], **values: Any) -> Row:
    return Row(
        name,
        build,
        params={"guidance": 2.0},
        given=first_latents,
        control=embedded(5, 8),
        first_prompt=True,
        breaks=lambda model: (model.model.final_layer, "forward"),
        wrong=CLIP_WRONG,
        **values,
    )


ROWS = (
    Row(
        "LongLive",
        longlive,
        window=11,
        params={"prompt": "x"},
        control=embedded(WAN.text_len, WAN.text_dim),
        first_prompt=True,
        breaks=lambda model: (model.vae, "decode"),
        wrong=SIZES_WRONG,
        loose=("histories/",),
    ),
    clip("Ca2-VDM", ca2vdm(), window=4),
    clip("Ca2-VDM, rope", ca2vdm(position="rope", table_len=7, prefix_frames=0, mask_channel=False), window=4),
    clip("Ca2-VDM, partial", ca2vdm(causality="partial"), window=4),
    dataclasses.replace(
        clip("Ca2-VDM, no captions", ca2vdm(caption_channels=0), window=4), control=None, first_prompt=False
    ),
    clip("ViD-GPT", vidgpt(None), window=5, length=5),
    clip("ViD-GPT, bounded", vidgpt(6), window=4),
    Row(
        "EasyControl",
        easycontrol,
        window=1,
        params={"prompt": "x"},
        given=lambda number: frames("subject", (40, 50), 1)(number, 0),
        feed=frames("depth", (40, 50), 1),
        control=embedded(6, 10),
        first_prompt=True,
        breaks=lambda model: (model.vae, "decode"),
        failure="unchanged",
        holds="at most",
        wrong=(*SIZES_WRONG, ({"prompt": "x", "conditions": {"pose": 1.0}}, "there is no condition 'pose'")),
    ),
    Row(
        "InfVSR",
        infvsr(),
        window=2,
        feed=frames("frames", (8, 12), 12),
        control=lambda revision: Control(revision, "parameters", {"new_scene": True}),
        breaks=lambda model: (model.vae, "decode_unclamped"),
        holds="at most",
        wrong=(({"height": 0}, "height and width must be at least 1"), ({"height": 9000, "width": 9000}, "at most")),
        loose=("histories/",),
    ),
    Row(
        "InfVSR decoder",
        infvsr("decoder"),
        window=2,
        feed=frames("frames", (8, 12), 12),
        control=lambda revision: Control(revision, "parameters", {"new_scene": True}),
        breaks=lambda model: (model.decoder, "forward"),
        holds="at most",
        wrong=(({"height": 0}, "height and width must be at least 1"), ({"height": 9000, "width": 9000}, "at most")),
        loose=("histories/",),
    ),
    Row(
        "InfiniteVGGT",
        infinitevggt,
        window=6,
        params={"height": 28, "width": 42, "total_budget": BUDGET, "camera_frames": 4},
        feed=frames("frames", (28, 42), 1),
        breaks=lambda model: (model.model.depth_head, "dense"),
        wrong=(({"height": 5}, "both or neither"), ({"fit": "stretch"}, "fit must be one of crop, pad")),
    ),
    *(text(f"text {strategy}", language_model, strategy) for strategy in STRATEGIES),
    *(
        text(f"text {strategy}, sampled", language_model, strategy, SAMPLED)
        for strategy in STRATEGIES
        if strategy != "jacobi"
    ),
    *(text(f"Locret {strategy}", locret, strategy, beyond=8 * (7 + 20 + 7)) for strategy in STRATEGIES),
    made_up(),
    dataclasses.replace(made_up(takes=3, chunk_frames=5), feed=frames("frames", (4, 6), 2)),
)


def built(row: Row, folder: Path) -> StreamModel:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return row.build(folder)
