"""Replays of LongLive's streams and of the Wan transformer (longlive.md, wan_base.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from riverrun.kernels.cache import CacheSpec, KVCache
from riverrun.kernels.policies import Full, PlannedPolicy, SinkWindow
from riverrun.kernels.rope import angles, axis_dims, rotation
from riverrun.kernels.shared import TextEntry
from riverrun.models.generation.rollout import BlockSampler, LatentStream, Prediction
from riverrun.models.key_forms import dit_keys
from riverrun.models.wan.dit import ClipMemory, WanConfig, WanModel
from riverrun.models.wan.schedule import FlowSchedule
from riverrun.models.wan.stream import TextMemories
from riverrun.models.weights import load_strict, merge_lora
from riverrun.tests.parity.cases import Case

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WINDOWLESS_TOKENS = 32_760  # what a global window attends to, whatever the size (longlive.md §4)


def wan_config(meta: dict[str, Any]) -> WanConfig:
    names = ("dim", "ffn_dim", "num_heads", "num_layers", "in_dim", "out_dim", "freq_dim", "text_dim", "text_len")
    return WanConfig(**{name: meta[name] for name in names}, patch_size=tuple(meta["patch_size"]))


def build(case: Case, dtype: torch.dtype = torch.float32) -> WanModel:
    model = WanModel(wan_config(case.meta["model_config"]))
    load_strict(model, case.tensors("w/"))
    return model.to(dtype).eval()


def self_cache(model: WanModel, policy: PlannedPolicy, tokens: int, dtype: torch.dtype, rope: str) -> KVCache:
    config = model.config
    keys = "normed" if rope == "infinite" else "rotated"
    return KVCache(
        CacheSpec("self", config.num_layers, config.num_heads, config.head_dim, keys, page=tokens), policy, dtype
    )


def text_entry(model: WanModel, embeds: Tensor) -> TextEntry:
    return TextEntry(*model.text_keys_values(model.embed_text(embeds[None])))


class RecordingSampler(BlockSampler):
    """Compares every pass with the fixture: pointers, prediction, cache."""

    case: Case
    number = 0

    def call(self, streams: Any, x: Tensor, t: Any, **options: Any) -> Prediction:
        expected = {call["call"]: call for call in self.case.meta["calls"]}.get(self.number)
        cursors = [(stream.cache.cursor, stream.cache.lengths[0]) for stream in streams]
        if expected:
            assert cursors == [(expected["global_end_before"], expected["local_end_before"])] * len(streams)
        prediction = super().call(streams, x, t, **options)
        cursors = [(stream.cache.cursor, stream.cache.lengths[0]) for stream in streams]
        if expected:
            assert cursors == [(expected["global_end_after"], expected["local_end_after"])] * len(streams)
        name = f"out/call{self.number:03d}"
        self.case.close_if_there(prediction.flow, f"{name}/flow")
        self.case.close_if_there(prediction.x0, f"{name}/x0")
        compare_caches(self.case, [stream.cache for stream in streams], f"{name}/kv")
        self.number += 1
        return prediction


def compare_caches(case: Case, caches: list[KVCache], prefix: str) -> None:
    for layer in range(caches[0].spec.layers):
        for part in ("k", "v"):
            rows = torch.cat([cache.slots(part, layer) for cache in caches])
            case.close_if_there(rows, f"{prefix}{layer}/{part}")


def stream(case: Case) -> None:
    """causal_stream, infinite_stream, interactive_stream, quirk_stream: a batch is so many sessions in one call."""
    meta, args = case.meta, case.meta["args"]
    dtype = DTYPES[meta["dtype"]]
    model = build(case, dtype)
    tokens, frames = meta["frame_seq_length"], args["num_frame_per_block"]
    kwargs = args["model_kwargs"]
    window, sink = kwargs["local_attn_size"], kwargs["sink_size"]
    rope = "infinite" if meta["infinite"] else "standard"
    policy: PlannedPolicy
    if window == -1:
        policy = Full(meta["frames"] * tokens, window=WINDOWLESS_TOKENS, sink=sink * tokens)
    else:
        policy = SinkWindow(window * tokens, sink * tokens)
    schedule = FlowSchedule.shifted(kwargs["timestep_shift"])
    steps = args["denoising_step_list"]
    timesteps = schedule.warp(steps) if args["warp_denoising_step"] else torch.tensor(steps, dtype=torch.float32)
    case.close(timesteps, "out/denoising_step_list")
    sampler = RecordingSampler(model, schedule, timesteps, rope, args["context_noise"])
    sampler.case = case

    noise, step_noise = case["in/noise"], case["in/step_noise"]
    prompts = [case[f"in/prompt_embeds_{i}"].to(dtype) for i in range(1 + len(meta["switch_frame_indices"] or ()))]
    streams = [
        LatentStream(
            self_cache(model, policy, tokens, dtype, rope),
            text_entry(model, embeds),
            noise.new_zeros((0, *noise.shape[2:])).to(dtype),
            keep_sink=args["global_sink"],
        )
        for embeds in prompts[0]
    ]
    pending = list(zip(meta["switch_frame_indices"] or (), prompts[1:], strict=True))
    latents = []
    for block in range(noise.shape[1] // frames):
        start = block * frames
        if pending and start >= pending[0][0]:
            for one, embeds in zip(streams, pending.pop(0)[1], strict=True):
                sampler.switch(one, text_entry(model, embeds))
        latents.append(sampler.block(streams, draws(noise[:, start : start + frames], step_noise[block], dtype)))
    case.close(torch.cat(latents, dim=1), "out/latents")
    for layer in range(model.config.num_layers):
        for part in ("k", "v"):
            rows = torch.cat([getattr(one.text, part)[layer] for one in streams])
            case.close_if_there(rows, f"out/final_cross{layer}/{part}")


def draws(first: Tensor, later: Tensor, dtype: torch.dtype) -> Callable[[int], Tensor]:
    """first [B, F, ...], later [steps - 1, B, F, ...]."""
    return lambda index: (later[index - 1] if index else first).to(dtype)


def dit_calls(case: Case) -> None:
    meta = case.meta
    model = build(case)
    tokens = model.config.tokens_per_frame(*meta["latent_hw"])
    rope = "infinite" if meta["infinite"] else "standard"
    sampler = BlockSampler(model, FlowSchedule.shifted(5.0), torch.tensor([1000.0]), rope)
    cache = self_cache(model, SinkWindow(meta["window"] * tokens, meta["sink"] * tokens), tokens, torch.float32, rope)
    entry = text_entry(model, case["in/prompt_embeds"][0])
    context = model.embed_text(case["in/prompt_embeds"][:1])
    one = LatentStream(cache, entry, torch.zeros(0))
    compare_angles(case, model.config.head_dim)
    calls = sorted(name for name in case.names() if name.startswith("in/call") and name.endswith("/x"))
    seen: dict[str, Tensor] = {}
    hooks = [module.register_forward_hook(save(seen, name)) for name, module in watched(model).items()]
    for number, name in enumerate(calls):
        x, t = case[name], case[name.replace("/x", "/t")]
        prediction = sampler.call([one], x, t)
        one.start += x.shape[1]
        case.close_if_there(prediction.flow, f"out/call{number}/flow")
        case.close_if_there(prediction.x0, f"out/call{number}/x0")
    for hook in hooks:
        hook.remove()
    for name, value in (seen | {"text_embedding": context}).items():
        expected = f"out/call{len(calls) - 1}/{name}"
        if expected in case:
            case.close(value.reshape(case[expected].shape), expected)
    compare_caches(case, [cache], "out/kv")
    for layer in range(model.config.num_layers):
        case.close(entry.k[layer], f"out/cross{layer}/k")
        case.close(entry.v[layer], f"out/cross{layer}/v")


def compare_angles(case: Case, head_dim: int) -> None:
    """The reference's table: for each position the angles of all three axes side by side."""
    for name in (name for name in case.names() if name.startswith("out/rope_freqs_real_")):
        positions = torch.arange(len(case[name]))
        turns = rotation(torch.cat([angles(positions, dim) for dim in axis_dims(head_dim)], dim=1))
        for turn, part in zip(turns, ("real", "imag"), strict=True):
            case.close(turn, name.replace("_real_", f"_{part}_"))


def watched(model: WanModel) -> dict[str, torch.nn.Module]:
    block = model.blocks[0]
    modules = {
        "patch_embedding": model.patch_embedding,
        "time_embedding": model.time_embedding,
        "time_projection": model.time_projection,
        "b0_norm1": block.norm1,
        "b0_q_lin": block.self_attn.q,
        "b0_q_norm": block.self_attn.norm_q,
        "b0_k_norm": block.self_attn.norm_k,
        "b0_self_attn": block.self_attn,
        "b0_norm3": block.norm3,
        "b0_cross_attn": block.cross_attn,
        "b0_norm2": block.norm2,
        "b0_ffn": block.ffn,
        "head": model.head,
    }
    return modules | {f"block{i}": layer for i, layer in enumerate(model.blocks)}


def save(seen: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(_module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen[name] = output
        if name == "b0_self_attn":
            seen["b0_self_attn_input"] = inputs[0]

    return hook


def lora_call(case: Case) -> None:
    meta = case.meta
    weights = merge_lora(case.tensors("w/"), case.tensors("lora/"), alpha=meta["alpha"])
    for name in case.names():
        if name.startswith("out/merged/"):
            case.close(weights[name.removeprefix("out/merged/")], name)
    model = WanModel(wan_config(meta["model_config"])).eval()
    load_strict(model, weights)
    tokens = model.config.tokens_per_frame(*meta["latent_hw"])
    sampler = BlockSampler(model, FlowSchedule.shifted(5.0), torch.tensor([1000.0]), "standard")
    cache = self_cache(
        model, SinkWindow(meta["window"] * tokens, meta["sink"] * tokens), tokens, torch.float32, "standard"
    )
    one = LatentStream(cache, text_entry(model, case["in/prompt_embeds"][0]), torch.zeros(0))
    prediction = sampler.call([one], case["in/x"], case["in/t"])
    case.close(prediction.flow, "out/flow")
    case.close(prediction.x0, "out/x0")


def dit_whole_clip(case: Case) -> None:
    """dit_original and dit_diffusers: Wan itself, no cache; both key forms load into the same module."""
    weights = dit_keys(case.tensors("w/"))
    config = original_config(case)
    model = WanModel(config).eval()
    load_strict(model, weights)
    latents, text = case["in/latents"], case["in/text"]
    memory = ClipMemory(config, *latents.shape[2:])
    cross = TextMemories([text_entry(model, text)])
    seen: dict[str, Tensor] = {}
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(save(seen, f"block{i}"))
    for name in (name for name in case.names() if name.startswith("out/t")):
        t = name.removeprefix("out/t")
        times = torch.full((1, latents.shape[2]), float(t))
        case.close(model(latents, times, memory, cross).reshape(case[name].shape), name)
        for block_name, value in seen.items():
            case.close_if_there(value, f"out/{block_name}_t{t}")


def original_config(case: Case) -> WanConfig:
    config = case.meta["config"]
    if "dim" in config:
        return wan_config(config)
    heads = config["num_attention_heads"]
    return WanConfig(
        dim=heads * config["attention_head_dim"],
        ffn_dim=config["ffn_dim"],
        num_heads=heads,
        num_layers=config["num_layers"],
        in_dim=config["in_channels"],
        out_dim=config["out_channels"],
        freq_dim=config["freq_dim"],
        text_dim=config["text_dim"],
        text_len=case["in/text_padded"].shape[1],
        patch_size=tuple(config["patch_size"]),
    )


REPLAYS = {
    ("longlive", "causal_stream"): stream,
    ("longlive", "infinite_stream"): stream,
    ("longlive", "interactive_stream"): stream,
    ("longlive", "quirk_stream"): stream,
    ("longlive", "dit_calls"): dit_calls,
    ("longlive", "lora_call"): lora_call,
    ("wan", "dit_original"): dit_whole_clip,
    ("wan", "dit_diffusers"): dit_whole_clip,
}
