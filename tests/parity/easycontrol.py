"""Replays of EasyControl's conditioned generation and of its position ids (easycontrol.md)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from riverrun.models.generation.easycontrol_conditions import (
    AloneMemory,
    ConditionEntry,
    ConditionLoRAs,
    LayerAdapter,
    condition_entry,
    condition_ids,
    image_ids,
    joint_memory,
)
from riverrun.models.generation.flux import FluxConfig, FluxTransformer, turn_of
from riverrun.models.generation.flux_schedule import flux_sigmas, walk
from riverrun.models.wan.schedule import shifted
from riverrun.models.weights import load_strict
from riverrun.tests.parity.cases import Case


def conditioned_generation(case: Case) -> None:
    """Ids, schedule, cache contents, warm-up, every step with and without cache, and the prompt switch."""
    check_ids(case)
    check_sigmas(case)
    model = build(case)
    adapters = condition_adapters(case, model.config)
    guidance = float(case["in/guidance"])
    latents = case["in/cond_latents"].split(case.meta["tokens_per_condition"], dim=1)
    ids = case["in/img_ids"][case.meta["noise_tokens"] :].split(case.meta["tokens_per_condition"])

    def entries(pooled: Tensor) -> list[ConditionEntry]:
        parts = zip(latents, ids, adapters, strict=True)
        return [condition_entry(model, x, at, pooled, guidance, loras) for x, at, loras in parts]

    pooled = case["in/pooled_prompt_embeds"]
    made = entries(pooled)
    compare_entries(case, model, made, "out/cache", ids)
    compare_raw(case, model, latents, ids, pooled, adapters)

    def predict(
        x: Tensor, sigma: Tensor, made: list[ConditionEntry], prompt: tuple[Tensor, Tensor], at: Tensor
    ) -> Tensor:
        text, vector = prompt
        rows = len(x)
        memory = joint_memory(model, text.shape[1], at, [made] * rows)
        vec = model.embed(sigma.expand(rows), case["in/guidance"].expand(rows), vector)
        return model(x, text, vec, memory)

    prompt, places = (case["in/prompt_embeds"], pooled), case["in/img_ids"][: case.meta["noise_tokens"]]
    sigmas = case["in/timesteps"] / 1000
    noise = case["in/noise_latents"]
    if "out/warmup/noise_pred" in case:
        last = case["out/warmup/noise_pred"].shape[1]
        warm = predict(noise[:, -last:], sigmas[0], made, prompt, case["in/warmup_img_ids"][:last])
        case.close(warm, "out/warmup/noise_pred")

    step = 0

    def flow(x: Tensor, sigma: Tensor) -> Tensor:
        nonlocal step
        if step:
            case.close_if_there(x, f"out/cached/step{step - 1}/latents_after")
        out = predict(x, sigma, made, prompt, places)
        case.close_if_there(out, f"out/cached/step{step}/noise_pred")
        case.close_if_there(out, f"out/nocache/step{step}/noise_pred")
        step += 1
        return out

    final = walk(noise, case["in/sigmas"], flow)
    assert step == case.meta["num_inference_steps"]
    case.close_if_there(final, f"out/cached/step{step - 1}/latents_after")
    case.close(final, "out/cached/final_latents")

    if "in/prompt2_embeds" in case:
        other = (case["in/prompt2_embeds"], case["in/prompt2_pooled"])
        x, sigma = case["in/prompt2_latents"], case["in/prompt2_timestep"][0] / 1000
        rebuilt = entries(other[1])
        case.close(predict(x, sigma, made, other, places), "out/prompt2/noise_pred_stale_cache")
        case.close(predict(x, sigma, rebuilt, other, places), "out/prompt2/noise_pred_rebuilt_cache")
        compare_entries(case, model, rebuilt, "out/prompt2/cache", ids)


def build(case: Case) -> FluxTransformer:
    model = FluxTransformer(FluxConfig.read(case.meta["transformer_config"]))
    load_strict(model, {name: t for name, t in case.tensors("w/").items() if not name.startswith("lora")})
    return model.eval()


def condition_adapters(case: Case, config: FluxConfig) -> list[list[LayerAdapter]]:
    """Condition j has file j to itself, or, of one file for several conditions, its j-th LoRAs."""
    strengths = case.meta["lora_weights"]
    files = [ConditionLoRAs.load(config, case.tensors(f"w/lora{i}/")) for i in range(count_files(case))]
    if len(files) == len(strengths):
        return [file.adapters(0, strength) for file, strength in zip(files, strengths, strict=True)]
    (file,) = files
    return [file.adapters(j, strength) for j, strength in enumerate(strengths)]


def count_files(case: Case) -> int:
    return len({name.split("/")[1] for name in case.names() if name.startswith("w/lora")})


def layers(model: FluxTransformer) -> dict[str, nn.Module]:
    """Attention modules in the order of their layers, by the names the fixtures have for their caches."""
    return {
        f"{name}.{i}.attn.processor": block.attn
        for name in ("transformer_blocks", "single_transformer_blocks")
        for i, block in enumerate(getattr(model, name))
    }


def compare_entries(
    case: Case, model: FluxTransformer, made: list[ConditionEntry], prefix: str, ids: tuple[Tensor, ...]
) -> None:
    """Fixtures hold raw keys: normed and turned, they are an entry's."""
    turned = AloneMemory(turn_of(torch.cat(ids), model.config.axes_dims_rope))
    for layer, (name, attn) in enumerate(layers(model).items()):
        if f"{prefix}/{name}/v" in case:
            case.close(heads_first([entry.v[layer] for entry in made]), f"{prefix}/{name}/v")
        if f"{prefix}/{name}/k" in case:
            raw = attn.norm_k(case[f"{prefix}/{name}/k"].transpose(0, 1)[None])
            turned.attend(layer, raw, raw, raw)
            tolerance = {part: case.meta["tolerance"][part] for part in ("atol", "rtol")}
            torch.testing.assert_close(torch.cat([entry.k[layer] for entry in made], 1), turned.k[-1], **tolerance)


def heads_first(parts: list[Tensor]) -> Tensor:
    """[1, C, H, D] of each condition -> [H, all C, D]."""
    return torch.cat(parts, dim=1)[0].transpose(0, 1)


def compare_raw(
    case: Case,
    model: FluxTransformer,
    latents: tuple[Tensor, ...],
    ids: tuple[Tensor, ...],
    pooled: Tensor,
    adapters: list[list[LayerAdapter]],
) -> None:
    """What the pass over the conditions gives before the norm of its keys, and out of its attention."""
    raw: dict[str, list[Tensor]] = {name: [] for name in layers(model)}
    hooks = [
        attn.norm_k.register_forward_pre_hook(lambda _module, args, name=name: raw[name].append(args[0]))
        for name, attn in layers(model).items()
    ]
    seen: list[list[Tensor]] = []

    class Watching(AloneMemory):
        def attend(self, layer: int, *qkv: Any) -> Tensor:
            seen[-1].append(super().attend(layer, *qkv))
            return seen[-1][-1]

    for x, at, loras in zip(latents, ids, adapters, strict=True):
        seen.append([])
        vec = model.embed(torch.zeros(1), case["in/guidance"], pooled)
        model.image_alone(x, vec, Watching(turn_of(at, model.config.axes_dims_rope)), loras)
    for hook in hooks:
        hook.remove()
    for layer, name in enumerate(raw):
        case.close_if_there(heads_first(raw[name]), f"out/cache/{name}/k")
        case.close_if_there(heads_first([one[layer] for one in seen]), f"out/cache/{name}/attn_out")


def check_ids(case: Case) -> None:
    meta = case.meta
    height, width, size = meta["height"], meta["width"], meta["cond_size"]
    placed = [condition_ids(placing, size, height, width) for placing in meta["conditions"]]
    case.close(torch.cat([image_ids(height, width), *placed]), "in/img_ids")


def check_sigmas(case: Case) -> None:
    scheduler, steps = case.meta["scheduler"], case.meta["num_inference_steps"]
    if scheduler["use_dynamic_shifting"]:
        sizes = (scheduler["base_image_seq_len"], scheduler["max_image_seq_len"])
        assert sizes == (256, 4096)
        sigmas = flux_sigmas(steps, case.meta["noise_tokens"], scheduler["base_shift"], scheduler["max_shift"])
    else:
        sigmas = torch.cat([shifted(torch.linspace(1, 1 / steps, steps), scheduler["shift"]), torch.zeros(1)])
    case.close(sigmas, "in/sigmas")
    case.close(1000 * sigmas[:-1], "in/timesteps")


def position_ids(case: Case) -> None:
    """Rows and columns of both placings, in float32 and rounded to bfloat16."""
    for one in case.meta["cases"]:
        height, width, size = one["height"], one["width"], one["cond_size"]
        at = f"out/{height}x{width}_c{size}"
        assert list(image_ids(height, width)[-1, 1:]) == [side - 1 for side in one["noise_grid"]]
        assert len(image_ids(height, width)) == one["noise_tokens"]
        for short, dtype in {"f32": torch.float32, "bf16": torch.bfloat16}.items():
            for placing in ("spatial", "subject"):
                ids = condition_ids(placing, size, height, width, dtype)
                assert len(ids) == one["tokens_per_condition"]
                grid = ids.unflatten(0, one["cond_grid"])
                case.close(grid[:, 0, 1], f"{at}/{short}/{placing}_rows")
                case.close(grid[0, :, 2], f"{at}/{short}/{placing}_cols")
                assert not ids[:, 0].any()


REPLAYS = {
    ("easycontrol", "conditioned_generation"): conditioned_generation,
    ("easycontrol", "position_ids"): position_ids,
}
