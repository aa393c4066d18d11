"""What a checkpoint is, whether it would load, and what a session of it costs: `riverrun models check PATH`.

Only names, shapes and dtypes are read (safetensors headers; pickles on the meta device), so a file of any size takes
seconds and no memory. What should be there is read off our own module, built on the meta device.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import UMT5EncoderModel

from riverrun.models.base import BadRequest
from riverrun.models.generation.ca2vdm_net import CausalSTDiT2
from riverrun.models.generation.ca2vdm_sizes import CHUNK, PAST, clip_session, infer_stdit
from riverrun.models.generation.flux import FLUX_DEV, FluxTransformer
from riverrun.models.generation.flux_sizes import condition_session, infer_flux, infer_flux_vae, infer_loras
from riverrun.models.generation.flux_vae import FluxVAE
from riverrun.models.geometry.sizes import geometry_session, infer_vggt
from riverrun.models.geometry.vggt import VGGT
from riverrun.models.key_forms import dit_keys, umt5_keys, vae_keys
from riverrun.models.super_resolution.guidance import VisualGuidance, trunk_keys
from riverrun.models.super_resolution.infvsr import INFVSR_DIT, INFVSR_WINDOW
from riverrun.models.super_resolution.swin import infer_swin
from riverrun.models.text.causal_lm import CausalLM
from riverrun.models.text.lm_sizes import EMBEDDING, infer_lm
from riverrun.models.text.lm_weights import lm_keys
from riverrun.models.text.locret import HEAD, infer_heads
from riverrun.models.text.umt5 import umt5_config
from riverrun.models.wan.dit import WAN_1_3B, WanModel
from riverrun.models.wan.sizes import HEAD_DIM, SessionBytes, dit_session, human, infer_dit, infer_vae, vae_session
from riverrun.models.wan.vae import WanVAE
from riverrun.models.weights import ADAPTER_WRAPPERS, Misfit, locate, lora_pairs, misfit, read, weight_files

LICENCES = {
    "easycontrol": "for research purposes only (EasyControl's word for its LoRAs)",
    "flux": "FLUX.1-dev non-commercial licence, if it is that model's",
    "longlive": "CC-BY-NC-SA-4.0 (LongLive's model card as last seen; its code is Apache-2.0)",
    "vggt": "CC-BY-NC-SA-4.0 (StreamVGGT, by its maintainers' word; VGGT-1B, its teacher, is CC-BY-NC-4.0)",
    "wan": "Apache-2.0 (released Wan 2.1 weights)",
}
"""By whose published form a file has (longlive.md §13); a card or metadata of its own comes first."""


@dataclass(frozen=True)
class Inspection:
    """What was found.

    what: "wan-dit", "wan-vae", "umt5", "stdit", "flux", "flux-vae", "condition-lora", "vggt", "lm", "retaining-heads",
    "guidance", "dape", "lora" or "unknown". form: whose key names ("original", "diffusers", "transformers", "peft").
    name: in words. config: sizes read from the shapes. misfit: what keeps it from loading. licence: None if not known.
    session: bytes of one session at (height, width), None where that has no meaning.
    """

    source: str
    files: tuple[str, ...]
    what: str
    form: str
    name: str
    tensors: int
    parameters: int
    nbytes: int
    dtypes: Mapping[str, int]
    config: Mapping[str, Any]
    misfit: Misfit
    licence: str | None
    session: SessionBytes | None

    @property
    def is_loadable(self) -> bool:
        return self.what != "unknown" and not self.misfit


@dataclass(frozen=True)
class _Kind:
    """What a set of tensors was recognised as, with the names and shapes its module would want."""

    what: str
    form: str
    name: str
    config: Mapping[str, Any]
    misfit: Misfit
    session: SessionBytes | None = None


def inspect_checkpoint(source: str | Path, height: int = 480, width: int = 832) -> Inspection:
    """Looks into a path or hub name without loading it. height, width: pixels of the session to cost.

    Raises BadRequest or Unavailable where there is nothing to read, as `weights.read`.
    """
    path = locate(source)
    files = weight_files(path)
    tensors = read(path, wrappers=ADAPTER_WRAPPERS, device="meta")
    kind = _recognise(tensors, height, width)
    metadata = _metadata(files[0])
    return Inspection(
        source=str(source),
        files=tuple(file.name for file in files),
        what=kind.what,
        form=kind.form,
        name=metadata.get("name", kind.name),
        tensors=len(tensors),
        parameters=sum(t.numel() for t in tensors.values()),
        nbytes=sum(t.nbytes for t in tensors.values()),
        dtypes=dict(Counter(str(t.dtype).removeprefix("torch.") for t in tensors.values())),
        config=kind.config,
        misfit=kind.misfit,
        licence=_licence(source, files[0], kind, metadata),
        session=kind.session,
    )


def _recognise(tensors: Mapping[str, Tensor], height: int, width: int) -> _Kind:
    if any(".lora_A." in key for key in tensors):
        return _lora(tensors)
    if any(key.startswith(("transformer_blocks.", "single_transformer_blocks.")) for key in tensors):
        return _flux(tensors, height, width)
    if "decoder.conv_in.weight" in tensors and tensors["decoder.conv_in.weight"].ndim == 4:
        return _flux_vae(tensors)
    if "x_embedder.proj.weight" in tensors:
        return _stdit(tensors)
    if any(key.startswith("visual_encoder.") for key in tensors):
        return _guidance(tensors)
    if "aggregator.camera_token" in tensors:
        return _vggt(tensors, height, width)
    if "patch_embedding.weight" in tensors:
        return _dit(tensors, height, width)
    if "decoder.conv1.weight" in tensors or "decoder.conv_in.weight" in tensors:
        return _vae(tensors, height, width)
    if "token_embedding.weight" in tensors or any(key.startswith("encoder.block.0.") for key in tensors):
        return _umt5(tensors)
    if EMBEDDING in tensors or f"model.{EMBEDDING}" in tensors:
        return _language_model(tensors)
    if any(HEAD in key for key in tensors):
        return _retaining_heads(tensors)
    return _Kind("unknown", "unknown", "no model of ours", {}, Misfit(unexpected=tuple(sorted(tensors))))


def _dit(tensors: Mapping[str, Tensor], height: int, width: int) -> _Kind:
    named = dit_keys(tensors)
    config = infer_dit(named)
    with torch.device("meta"):
        problem = misfit(_shapes(WanModel(config)), named)
    form = "diffusers" if any(key.startswith("condition_embedder.") for key in tensors) else "original"
    sizes = dataclasses.asdict(config)
    for name in ("text_len", "eps", *(() if config.head_dim == HEAD_DIM else ("num_heads",))):
        del sizes[name]  # no shape shows them
    dtype = named["patch_embedding.weight"].dtype
    if config.text_dim == INFVSR_DIT.text_dim:
        config = dataclasses.replace(config, text_len=INFVSR_DIT.text_len)
        session = dit_session(config, height, width, dtype, INFVSR_WINDOW, sink=0)
        parts = {name: size for name, size in session.parts.items() if name != "clean latents"}  # it recaches nothing
        session = dataclasses.replace(session, parts=parts)
        return _Kind("wan-dit", form, f"InfVSR restorer, {config.num_layers} layers", sizes, problem, session)
    session = dit_session(config, height, width, dtype)
    return _Kind("wan-dit", form, f"Wan diffusion transformer, {config.num_layers} layers", sizes, problem, session)


def _guidance(tensors: Mapping[str, Tensor]) -> _Kind:
    """InfVSR's trunk, by itself or inside a recognise-anything file (the rest of it isn't read); or its adapter."""
    if any(key.endswith(".lora_A") for key in tensors):
        lonely = [key for key in tensors if not key.endswith((".qkv.lora_A", ".qkv.lora_B"))]
        return _Kind(
            "dape", "original", f"DAPE adapter, {len(tensors) // 2} layers", {}, Misfit(unexpected=tuple(lonely))
        )
    named = trunk_keys(tensors)
    config = infer_swin({name.removeprefix("visual_encoder."): tensor for name, tensor in named.items()})
    context = named["image_proj.weight"].shape[0] if "image_proj.weight" in named else INFVSR_DIT.text_dim
    with torch.device("meta"):
        problem = misfit(_shapes(VisualGuidance(config, context)), named)
    name = f"visual guidance (Swin, {sum(config.depths)} blocks)"
    return _Kind("guidance", "original", name, dataclasses.asdict(config), problem)


def _vae(tensors: Mapping[str, Tensor], height: int, width: int) -> _Kind:
    named = vae_keys(tensors)
    config = infer_vae(named)
    with torch.device("meta"):
        problem = misfit(_shapes(WanVAE(config)), named)
    form = "diffusers" if "decoder.conv_in.weight" in tensors else "original"
    sizes = {name: size for name, size in dataclasses.asdict(config).items() if name not in ("mean", "std")}
    session = vae_session(config, height, width, next(iter(named.values())).dtype)
    return _Kind("wan-vae", form, f"Wan causal 3-D VAE, {config.z_dim} latent channels", sizes, problem, session)


def _umt5(tensors: Mapping[str, Tensor]) -> _Kind:
    named = umt5_keys(tensors)
    form = "original" if "token_embedding.weight" in tensors else "transformers"
    try:
        config = umt5_config(named)
    except BadRequest:
        return _Kind("umt5", form, "part of a UMT5 encoder", {}, Misfit(missing=("shared.weight or a layer 0",)))
    with torch.device("meta"):
        expected = _shapes(UMT5EncoderModel(config))
    expected.pop("encoder.embed_tokens.weight", None)  # tied
    sizes = {name: getattr(config, name) for name in ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers")}
    name = f"UMT5 prompt encoder, {config.num_layers} layers"
    return _Kind("umt5", form, name, sizes | {"num_heads": config.num_heads}, misfit(expected, named))


def _retaining_heads(tensors: Mapping[str, Tensor]) -> _Kind:
    """Locret's, by themselves or beside the model they belong to."""
    heads = {key.removeprefix("model."): tensor for key, tensor in tensors.items() if HEAD in key}
    sizes, expected = infer_heads(heads)
    return _Kind("retaining-heads", "original", "retaining heads (Locret)", sizes, misfit(expected, heads))


def _language_model(tensors: Mapping[str, Tensor]) -> _Kind:
    if any(HEAD in key for key in tensors):
        base = _language_model({key: tensor for key, tensor in tensors.items() if HEAD not in key})
        own = _retaining_heads(tensors)
        parts = zip(dataclasses.astuple(base.misfit), dataclasses.astuple(own.misfit), strict=True)
        return dataclasses.replace(base, name=f"{base.name}, {own.name}", misfit=Misfit(*(a + b for a, b in parts)))
    try:
        family, config = infer_lm(tensors)
    except KeyError as error:
        return _Kind("lm", "transformers", "part of a language model", {}, Misfit(missing=(str(error.args[0]),)))
    with torch.device("meta"):
        problem = misfit(_shapes(CausalLM(config)), lm_keys(tensors, config))
    hidden = ("head_dim", "rms_norm_eps", "max_position_embeddings", "rotary", "mask_token_id")  # no shape shows them
    heads = () if config.qk_norm else ("num_attention_heads", "num_key_value_heads")
    sizes = {name: size for name, size in dataclasses.asdict(config).items() if name not in (*hidden, *heads)}
    a_token = human(config.kv_bytes(1, next(iter(tensors.values())).dtype))
    name = f"language model ({family}), {config.num_hidden_layers} layers, {a_token} of cache a token"
    return _Kind("lm", "transformers", name, sizes, problem)


def _stdit(tensors: Mapping[str, Tensor]) -> _Kind:
    """Of Ca2-VDM and ViD-GPT; the session is of the frame size the file was trained for, in its dtype."""
    config = infer_stdit(tensors)
    with torch.device("meta"):
        problem = misfit(_shapes(CausalSTDiT2(config)), tensors)
    dtype = tensors["x_embedder.proj.weight"].dtype
    parts = clip_session(config, dtype.itemsize, PAST + CHUNK)
    height, width = (8 * side for side in config.latent_size)  # of Stable Diffusion's VAE
    session = SessionBytes(height, width, str(dtype).removeprefix("torch."), parts)
    hidden = ("position", "causality", "space_scale", "time_scale", "num_heads")  # no shape shows them
    sizes = {name: size for name, size in dataclasses.asdict(config).items() if name not in hidden}
    name = f"factorised video transformer (Ca2-VDM, ViD-GPT), {config.depth} layers"
    return _Kind("stdit", "original", name, sizes, problem, session)


def _flux(tensors: Mapping[str, Tensor], height: int, width: int) -> _Kind:
    """FLUX's transformer, or the LoRAs of an EasyControl condition."""
    if any("_loras." in key for key in tensors):
        loras, sizes = infer_loras(tensors)
        name = f"EasyControl LoRAs of rank {sizes['rank']} for {sizes['conditions']} condition(s)"
        return _Kind("condition-lora", "original", name, sizes, misfit(_shapes(loras), tensors))
    config = infer_flux(tensors)
    with torch.device("meta"):
        problem = misfit(_shapes(FluxTransformer(config)), tensors)
    session = condition_session(config, height, width, next(iter(tensors.values())).dtype)
    found = dataclasses.asdict(config)
    del found["axes_dims_rope"]  # no shape shows them
    name = f"FLUX transformer, {config.num_layers} + {config.num_single_layers} layers"
    return _Kind("flux", "diffusers", name, found, problem, session)


def _flux_vae(tensors: Mapping[str, Tensor]) -> _Kind:
    config = infer_flux_vae(tensors)
    with torch.device("meta"):
        problem = misfit(_shapes(FluxVAE(config)), tensors)
    hidden = ("norm_num_groups", "scaling_factor", "shift_factor")  # no shape shows them
    sizes = {name: size for name, size in dataclasses.asdict(config).items() if name not in hidden}
    return _Kind("flux-vae", "diffusers", f"FLUX image VAE, {config.latent_channels} latent channels", sizes, problem)


def _vggt(tensors: Mapping[str, Tensor], height: int, width: int) -> _Kind:
    """For InfiniteVGGT; VGGT and StreamVGGT have the same keys, and no shape tells which a file is."""
    config = infer_vggt(tensors)
    with torch.device("meta"):
        problem = misfit(_shapes(VGGT(config)), tensors)
    session = geometry_session(config, height, width, tensors["aggregator.camera_token"].dtype)
    hidden = ("rope_theta", "dino_heads", "camera_heads", "camera_iterations", "dpt_layers")  # no shape shows them
    sizes = {name: size for name, size in dataclasses.asdict(config).items() if name not in hidden}
    name = f"VGGT or StreamVGGT, {config.depth} pairs of layers"
    return _Kind("vggt", "original", name, sizes, problem, session)


def _lora(tensors: Mapping[str, Tensor]) -> _Kind:
    try:
        pairs = lora_pairs(tensors)
    except BadRequest as error:
        return _Kind(
            "lora", "peft", f"a LoRA adapter that can't be read: {error}", {}, Misfit(unexpected=("see name",))
        )
    ranks = {down.shape[0] for down, _ in pairs.values()}
    sizes = {"rank": max(ranks), "layers": len(pairs), "targets": sorted({_target(name) for name in pairs})}
    strangers = [name for name in pairs if not re.match(r"blocks\.\d+\.(self_attn|cross_attn|ffn)\.", name)]
    name = f"LoRA adapter of rank {sizes['rank']} for {len(pairs)} layers of a Wan transformer"
    return _Kind("lora", "peft", name, sizes, Misfit(unexpected=tuple(strangers)))


def _target(name: str) -> str:
    return re.sub(r"^blocks\.\d+\.|\.weight$", "", name)


def _shapes(module: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def _metadata(file: Path) -> dict[str, str]:
    if file.suffix != ".safetensors":
        return {}
    with safe_open(file, framework="pt") as opened:
        return opened.metadata() or {}


def _licence(source: str | Path, file: Path, kind: _Kind, metadata: Mapping[str, str]) -> str | None:
    """From the file's metadata, the model card beside it, or whose release it looks like; None if none says."""
    for name in ("license", "licence"):
        if name in metadata:
            return metadata[name]
    for card in (file.with_suffix(".md"), file.parent / "README.md", file.parent.parent / "README.md"):
        found = re.search(r"^licen[sc]e:\s*(\S+)", card.read_text(errors="replace"), re.M) if card.is_file() else None
        if found:
            return f"{found[1]} ({card.name})"
    if kind.what in ("wan-dit", "lora") and "longlive" in str(source).lower():
        return LICENCES["longlive"]
    if not _is_released(kind):
        return None
    return LICENCES[{"condition-lora": "easycontrol", "flux": "flux", "vggt": "vggt"}.get(kind.what, "wan")]


def _is_released(kind: _Kind) -> bool:
    sizes = kind.config
    known = {
        "wan-dit": sizes.get("dim") in (1536, 5120) and sizes.get("text_dim") == WAN_1_3B.text_dim,
        "wan-vae": sizes.get("dim") == 96,
        "umt5": sizes.get("d_model") == 4096,
        "vggt": sizes.get("dim") == 1024,
        "flux": sizes.get("in_channels") == FLUX_DEV.in_channels and bool(sizes.get("guidance_embeds")),
        "condition-lora": sizes.get("dim") == FLUX_DEV.dim,
    }
    return known.get(kind.what, False)


def render(found: Inspection) -> str:
    """The inspection as lines for a terminal."""
    kinds = ", ".join(f"{count} {dtype}" for dtype, count in found.dtypes.items())
    lines = [
        f"{found.source}: {found.name} ({found.what}, {found.form} keys)",
        f"  {found.tensors} tensors ({kinds}), {found.parameters:,} values, {human(found.nbytes)}",
    ]
    if found.config:
        lines.append("  sizes: " + ", ".join(f"{name} {json.dumps(value)}" for name, value in found.config.items()))
    lines.append(f"  keys: {found.misfit}" if found.misfit else "  keys: all there, none too many")
    lines.append(f"  licence: {found.licence or 'not known'}")
    if found.session:
        lines.append(f"  held by a session at {found.session}")
    return "\n".join(lines)
