"""Replays of what all Wan models share: VAE, prompt encoder, schedules (wan_base.md, longlive.md §5, §8, §10)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from riverrun.kernels.histories import Histories
from riverrun.kernels.quantise import dequantise_nvfp4, quantise_nvfp4, smoothed
from riverrun.models.key_forms import umt5_keys, vae_keys
from riverrun.models.text.umt5 import load_umt5, zero_padding
from riverrun.models.wan.dit import sinusoid
from riverrun.models.wan.schedule import FlowSchedule, euler, twice_shifted_sigmas
from riverrun.models.wan.unipc import UniPCMemory, UniPCTable, unipc_step
from riverrun.models.wan.vae import WAN21_VAE, VAEConfig, WanVAE
from riverrun.models.weights import load_strict
from riverrun.tests.parity.cases import Case


def build_vae(case: Case, config: VAEConfig) -> WanVAE:
    vae = WanVAE(config)
    load_strict(vae, vae_keys(case.tensors("w/")))
    return vae.eval()


def kept(histories: Histories, part: str) -> list[Tensor | None]:
    """The slots of one direction in the order of their first use, which is the official call order."""
    return [histories.get(path) for path in histories.paths() if path.startswith(part)]


def vae(case: Case) -> None:
    """Whole clip both ways, and encoded in chunks; the decoder's chunks must give the whole clip."""
    meta = case.meta["config"]
    config = VAEConfig(
        dim=meta["dim"],
        z_dim=meta["z_dim"],
        dim_mult=tuple(meta["dim_mult"]),
        num_res_blocks=meta["num_res_blocks"],
        temporal_downsample=tuple(meta["temperal_downsample"]),
        mean=tuple(case["in/latents_mean"].tolist()),
        std=tuple(case["in/latents_std"].tolist()),
    )
    model = build_vae(case, config)
    pixels = (case["in/frames_u8"].float() / 255 * 2 - 1).permute(0, 3, 1, 2)[None]  # (1, T, 3, H, W)
    latents = model.encode_clip(pixels)
    case.close(latents.transpose(1, 2), "out/latents")
    case.close(model.decode_clip(latents).transpose(1, 2), "out/frames_unclamped")

    histories = Histories()
    sizes = case.meta["pixel_chunks"]
    for i, chunk in enumerate(pixels.split(sizes, dim=1)):
        case.close(model.encode(chunk, histories).transpose(1, 2), f"out/stream_latents/{i}")
    frames = [model.decode(latent, histories) for latent in latents.split(1, dim=1)]
    streamed = torch.cat(frames, dim=1).transpose(1, 2)
    torch.testing.assert_close(streamed, case["out/frames_unclamped"].clamp(-1, 1), atol=1e-4, rtol=1e-4)
    for part, shapes in case.meta["history_shapes_after_last_chunk"].items():
        # The official lists are longer than the slots in use (wan_base.md §3).
        found = [None if slot is None else list(slot.shape) for slot in kept(histories, part)]
        assert found == [shape for shape in shapes if shape is not None]


def vae_stream(case: Case) -> None:
    """Decoded at once, in chunks, and with the restarts of the official script; encoded at once."""
    meta = case.meta
    config = VAEConfig(
        dim=meta["dim"],
        z_dim=meta["z_dim"],
        dim_mult=tuple(meta["dim_mult"]),
        num_res_blocks=meta["num_res_blocks"],
        temporal_downsample=tuple(meta["temporal_downsample"]),
        mean=WAN21_VAE.mean,
        std=WAN21_VAE.std,
    )
    model = build_vae(case, config)
    latents = case["in/latents"]
    case.close(model.decode_clip(latents), "out/decode_full_raw")
    case.close(model.decode_clip(latents).clamp(-1, 1), "out/decode_full")
    for chunks in (meta["chunks"], [1] * latents.shape[1], [latents.shape[1]]):
        histories = Histories()
        frames = [model.decode(chunk, histories) for chunk in latents.split(chunks, dim=1)]
        case.close(torch.cat(frames, dim=1), "out/decode_full")

    for count in found(case, r"out/feat_map_after(\d+)/.*"):
        histories = Histories()
        for latent in latents[:, :count].split(1, dim=1):
            model.decode(latent, histories)
        slots = kept(histories, "decoder.")
        names = sorted(case.tensors(f"out/feat_map_after{count}/"))
        assert len(slots) == len(names)
        for slot, name in zip(slots, names, strict=True):
            assert slot is not None
            case.close(slot, f"out/feat_map_after{count}/{name}")
    for size in found(case, r"out/decode_chunk(\d+)_restart"):
        restarted = [model.decode(chunk, Histories()) for chunk in latents.split(size, dim=1)]
        case.close(torch.cat(restarted, dim=1), f"out/decode_chunk{size}_restart")
    case.close(model.encode(case["in/pixels"].transpose(1, 2), Histories()), "out/encode")


def found(case: Case, pattern: str) -> list[int]:
    """The numbers in the names of tensors of that pattern."""
    return sorted({int(match[1]) for name in case.names() if (match := re.fullmatch(pattern, name))})


def umt5(case: Case) -> None:
    """Both key forms; rows past a prompt's own tokens are zero."""
    weights = case.tensors("w/")
    ids, mask = case["in/ids"], case["in/mask"]
    config = case.meta["config"]
    (distance,) = (config[name] for name in ("max_distance", "max_dist") if name in config)
    stated = {"relative_attention_max_distance": distance}
    encoder = load_umt5(weights, stated)
    hidden = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    case.close_if_there(hidden, "out/hidden")
    (expected,) = [name for name in case.names() if name in ("out/context_zero_padded", "out/prompt_embeds")]
    case.close(zero_padding(hidden, mask), expected)
    again = load_umt5(umt5_keys(weights), stated)(input_ids=ids, attention_mask=mask).last_hidden_state
    assert torch.equal(again, hidden)


def schedulers(case: Case) -> None:
    """Tables, and toy trajectories along v(x, sigma), of every scheduler for every (shift, steps) there is."""

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        return (x @ case["in/A"].T) * (0.5 + sigma) + 0.2 * torch.sin(3 * x)

    def walk(sigmas: Tensor) -> Tensor:
        x = case["in/x_T"]
        for now, then in pairwise(sigmas):
            x = euler(x, velocity(x, now), now, then)
        return x

    for shift, steps in case.meta["combos"]:
        at = f"shift{shift}_n{steps}"
        plain = {"sigma_min": 0.003 / 1.002, "extra_step": False}
        for name, options in {"flowmatch_extra": {}, "flowmatch_plain": plain}.items():
            table = FlowSchedule.shifted(shift, steps, **options)
            case.close(table.sigmas, f"out/{name}/{at}/sigmas")
            case.close(table.timesteps, f"out/{name}/{at}/timesteps")
            case.close_if_there(walk(torch.cat([table.sigmas, torch.zeros(1)])), f"out/{name}/{at}/x_0")
        case.close_if_there(FlowSchedule.shifted(shift, steps).sigmas, f"out/wan_dpm_sampling_sigmas/{at}")
        twice = twice_shifted_sigmas(steps, shift)
        case.close_if_there(twice, f"out/diffusers_euler/{at}/sigmas")
        case.close_if_there(1000 * twice[:-1], f"out/diffusers_euler/{at}/timesteps")
        case.close_if_there(walk(twice), f"out/diffusers_euler/{at}/x_0")
        for name, unipc in {"wan_unipc": UniPCTable.wan, "diffusers_unipc": UniPCTable.diffusers}.items():
            solver = unipc(steps, shift)
            case.close_if_there(solver.sigmas, f"out/{name}/{at}/sigmas")
            case.close_if_there(solver.timesteps, f"out/{name}/{at}/timesteps")
            if (trajectory := f"out/{name}/{at}/trajectory") in case:
                case.close(torch.cat(list(solve(solver, case["in/x_T"], velocity))), trajectory)


def solve(table: UniPCTable, x: Tensor, velocity: Callable[[Tensor, Tensor], Tensor]) -> Iterator[Tensor]:
    memory: UniPCMemory | None = None
    for i, sigma in enumerate(table.sigmas[:-1]):
        x, memory = unipc_step(table, i, x, velocity(x, sigma), memory)
        yield x


def scheduler(case: Case) -> None:
    t = case["in/t"]
    for shift in sorted({name.split("/")[1] for name in case.names() if name.startswith("out/shift")}):
        schedule = FlowSchedule.shifted(float(shift.removeprefix("shift")))
        x0, noise, flow = (case[f"in/{shift}/{name}"] for name in ("x0", "noise", "flow"))
        index = schedule.index(t)
        assert torch.equal(index, case[f"out/{shift}/timestep_id"])
        # The official step sends the whole batch to 0 as soon as one sample is at the end of the table.
        ends = index + 1 == len(schedule.sigmas)
        then = torch.zeros(len(t)) if ends.any() else schedule.sigmas[index + 1]
        results = {
            "sigmas": schedule.sigmas,
            "timesteps": schedule.timesteps,
            "training_weights": schedule.training_weights(),
            "add_noise": schedule.add_noise(x0, noise, t),
            "flow_to_x0": schedule.flow_to_x0(flow, x0, t),
            "x0_to_flow": schedule.x0_to_flow(x0, noise, t),
            "step": euler(x0, flow, schedule.sigma(t), then),
        }
        for name, result in results.items():
            case.close(result, f"out/{shift}/{name}")
        for name in case.tensors(f"out/{shift}/warped_"):
            case.close(schedule.warp([int(step) for step in name.split("_")]), f"out/{shift}/warped_{name}")
    for dim in case.tensors("out/sinusoidal_"):
        case.close(sinusoid(t, int(dim)), f"out/sinusoidal_{dim}")


def nvfp4_kv(case: Case) -> None:
    """Codes and scales must be equal, keys are centred first."""
    values = case["in/k"]
    keys = smoothed(values.bfloat16()).float()
    case.close(keys, "out/k_smooth")
    for rule in ("mse", "static_6"):
        for part, x in {"k": keys, "v": values}.items():
            made, at = quantise_nvfp4(x, rule), f"out/{rule}/{part}"
            assert torch.equal(made.values, case[f"{at}/values_fp4"])
            assert torch.equal(made.scales.float(), case[f"{at}/scales_e4m3"])
            assert torch.equal(made.packed, case[f"{at}/packed"][: len(x)])  # rows are padded to 128 there
            case.close(made.amax, f"{at}/amax")
            case.close(dequantise_nvfp4(made).bfloat16(), f"{at}/dequant_bf16")


REPLAYS = {
    ("wan", "vae"): vae,
    ("wan", "umt5"): umt5,
    ("wan", "schedulers"): schedulers,
    ("longlive", "vae_stream"): vae_stream,
    ("longlive", "umt5_encoder"): umt5,
    ("longlive", "scheduler"): scheduler,
    ("longlive", "nvfp4_kv"): nvfp4_kv,
}
