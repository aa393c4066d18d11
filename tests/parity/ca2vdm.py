"""Replays of Ca2-VDM's streams, single calls, sampler, loss and FLOP counts (ca2vdm.md); ViD-GPT's use them too."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from riverrun.kernels.policies import PastQueue
from riverrun.kernels.shared import TextEntry
from riverrun.models.generation.ca2vdm_flops import clip_call, denoise_call, write_call
from riverrun.models.generation.ca2vdm_memory import CachedFrames, FrameCaches, WholeClip, band_mask, clip_mask
from riverrun.models.generation.ca2vdm_net import Causality, CausalSTDiT2, STDiTConfig
from riverrun.models.generation.ca2vdm_sampler import ChunkSampler, ClipStream, Draw, clip_times, training_loss
from riverrun.models.generation.iddpm import IDDPM
from riverrun.models.weights import load_strict
from riverrun.tests.parity.cases import Case

CAUSALITY: dict[Any, Causality] = {True: "causal", "partial": "partial", False: "full"}


def net_config(meta: dict[str, Any]) -> STDiTConfig:
    assert meta["patch_size"][0] == 1
    assert meta["patch_size"][1] == meta["patch_size"][2]
    prefix = re.fullmatch(r"prev_(?:frames|prefix)_(\d+)", meta.get("spatial_attn_enhance") or "prev_frames_0")
    assert prefix is not None, meta["spatial_attn_enhance"]
    defaults = STDiTConfig()
    return STDiTConfig(
        latent_size=tuple(meta["input_size"][1:]),
        hidden_size=meta["hidden_size"],
        depth=meta["depth"],
        num_heads=meta["num_heads"],
        in_channels=meta["in_channels"],
        patch=meta["patch_size"][1],
        mlp_ratio=int(meta.get("mlp_ratio", defaults.mlp_ratio)),
        caption_channels=meta["caption_channels"],
        text_len=meta.get("model_max_length", defaults.text_len),
        mask_channel=bool(meta["temp_extra_in_channels"]),
        table_len=meta["max_tpe_len"],
        position=meta["relative_tpe_mode"] or "absolute",
        causality=CAUSALITY[meta["is_causal"]],
        prefix_frames=int(prefix[1]),
        space_scale=meta.get("space_scale", 1.0),
        time_scale=meta.get("time_scale", 1.0),
    )


def build(case: Case) -> CausalSTDiT2:
    model = CausalSTDiT2(net_config(case.meta["config"]))
    computed = {name: getattr(model, name).clone() for name in ("pos_embed", "pos_embed_temporal")}
    load_strict(model, case.tensors("w/"))
    for name, table in computed.items():  # what a checkpoint without them would get
        case.close(table, f"w/{name}")
    return model.eval()


def texts(case: Case, model: CausalSTDiT2, guided: bool) -> list[tuple[TextEntry, ...]]:
    """For each sample its guidance rows' captions, cut by the mask."""
    if "in/y" not in case:
        return []
    entries = []
    for y, kept in zip(case["in/y"][:, 0], case["in/mask"].bool(), strict=True):
        null = (model.caption(model.y_embedder.y_embedding[kept]),) if guided else ()
        entries.append((*null, model.caption(y[kept])))
    return entries


def streams(case: Case, model: CausalSTDiT2, past: int, chunk: int, scale: float = 1.0) -> list[ClipStream]:
    guided = scale > 1
    entries = texts(case, model, guided) or [()] * case["in/z0"].shape[0]
    policy = PastQueue(past, chunk)
    return [ClipStream(FrameCaches.empty(model.config, policy, 1 + guided), entry, scale) for entry in entries]


class RecordingSampler(ChunkSampler):
    """Compares with the fixture the first and last pass of every chunk and the caches after every write."""

    case: Case
    writes = 0
    calls = 0

    def _call(self, streams: Sequence[ClipStream], rows: Tensor, t: int, clean: bool) -> Tensor:
        if clean:
            self.before_write(streams, rows)
        out = super()._call(streams, rows, t, clean)
        if clean:
            self.after_write(streams)
            return out
        last = self.diffusion.steps - 1
        if self.calls in (0, last):
            name = f"out/chunk{self.writes - 1}/denoise_{'first' if self.calls == 0 else 'last'}"
            count = len(streams)
            self.case.close_if_there(official(rows, count), f"{name}/x")
            self.case.close_if_there(official(out, count), f"{name}/raw")
            self.case.close_if_there(torch.full((len(rows),), t), f"{name}/t")
        self.calls = (self.calls + 1) % self.diffusion.steps
        return out

    def before_write(self, streams: Sequence[ClipStream], rows: Tensor) -> None:
        self.case.close_if_there(rows[:: len(rows) // len(streams)], f"out/write{self.writes}/latents_written")
        expected = self.case.meta["writes"][self.writes]
        caches = streams[0].caches
        assert caches.frames == expected["abs_start"]
        assert rows.shape[2] == expected["n"]
        if expected["tpe_ids"] is not None:
            memory = CachedFrames(self.model.config, [caches], rows.shape[2], clean=True)
            assert memory.rows[0].tolist() == expected["tpe_ids"]

    def after_write(self, streams: Sequence[ClipStream]) -> None:
        expected, past = self.case.meta["writes"][self.writes], self.case.meta["kv_cache_max_seqlen"]
        caches = [stream.caches for stream in streams]
        held = min(caches[0].temporal.lengths[0], past)
        cursor = caches[0].temporal.cursor
        assert held == expected["valid_after"]
        assert list(range(cursor - held, cursor)) == expected["frames_in_cache_after"]
        compare_caches(self.case, caches, f"out/write{self.writes}", past)
        self.writes += 1


def compare_caches(case: Case, caches: list[FrameCaches], prefix: str, past: int) -> None:
    """Against (depth, G*B, past, S, 2C), keys then values, oldest frame first, zeros behind."""
    indicator = f"{prefix}/indicator"
    if indicator in case:
        assert int(case[indicator].sum()) == caches[0].frames
    spec, length = caches[0].temporal.spec, caches[0].temporal.lengths[0]
    for name, pick in (("cache_kv", lambda c: c.temporal), ("spatial_kv", lambda c: c.prefix)):
        if f"{prefix}/{name}" not in case:
            continue
        wanted = case[f"{prefix}/{name}"]
        places = wanted.shape[3]
        for layer in range(spec.layers):
            pair = []
            for part in ("k", "v"):
                rows = []
                for cache in caches:
                    slots = pick(cache).slots(part, layer).flatten(2)
                    if name == "cache_kv":  # (G*S, slots, C) -> (G, slots, S, C), the newest `past`
                        held = slots[:, max(0, length - past) : length]
                        rows.append(held.unflatten(0, (-1, places)).transpose(1, 2))
                    else:
                        rows.append(slots.unflatten(1, (-1, places)))
                pair.append(official(torch.cat(rows), len(caches)))
            actual = torch.zeros_like(wanted[layer])
            found = torch.cat(pair, dim=-1)
            actual[:, : found.shape[1]] = found
            tolerance = case.meta["tolerance"]
            torch.testing.assert_close(
                actual, wanted[layer], atol=tolerance["atol"], rtol=tolerance["rtol"], msg=lambda m: f"{prefix}: {m}"
            )


def official(rows: Tensor, sessions: int) -> Tensor:
    """Rows of (session, guidance) order in the official one: all null rows, then all captioned."""
    return rows.unflatten(0, (sessions, -1)).transpose(0, 1).flatten(0, 1)


def perturbation(meta: dict[str, Any]) -> int | None:
    if meta["prefix_perturb_t"] <= 0:
        return None
    step = int(meta["prefix_perturb_t"] * meta["num_sampling_steps"] / 1000)
    assert step == meta["respaced_perturb_t"]
    return step


def draws(case: Case, chunk: int, start: int) -> Draw:
    steps = case[f"in/step_noise/{chunk}"]
    frames = steps.shape[3]

    def draw(index: int) -> Tensor:
        if index == 0:
            return case["in/init_noise"][:, :, start : start + frames]
        return steps[index - 1] if index <= len(steps) else case[f"in/perturb_noise/{chunk}"]

    return draw


def stream(case: Case) -> None:
    meta = case.meta
    model, diffusion = build(case), IDDPM(meta["num_sampling_steps"])
    assert diffusion.timestep_map == meta["timestep_map"]
    sampler = RecordingSampler(model, diffusion, perturbation(meta))
    sampler.case = case
    case.close(run(case, sampler), "out/z_all")


def run(case: Case, sampler: ChunkSampler) -> Tensor:
    """All frames of the stream, the given ones first."""
    meta = case.meta
    sessions = streams(case, sampler.model, meta["kv_cache_max_seqlen"], meta["chunk_len"], meta["cfg_scale"])
    given = case["in/z0"]
    sampler.write(sessions, given, case["in/perturb_noise_init"] if sampler.perturb is not None else None)
    frames = [given]
    for chunk in range(meta["ar_steps"]):
        frames.append(sampler.chunk(sessions, draws(case, chunk, sessions[0].caches.frames)))
        case.close_if_there(frames[-1], f"out/chunk{chunk}/z")
    return torch.cat(frames, dim=2)


def single_call(case: Case) -> None:
    """One write and one pass over the frames that follow, every submodule compared; then without caches."""
    model = build(case)
    past, frames = case.meta["kv_cache_max_seqlen"], case.meta["chunk_len"]
    sessions = streams(case, model, past, frames)
    sampler = ChunkSampler(model, IDDPM(4))
    compare_parts(case, model, "out/write", lambda: sampler.write(sessions, case["in/z0"]))
    compare_caches(case, [s.caches for s in sessions], "out/write", past)
    entries = [entry for s in sessions for entry in s.text] or None
    out: list[Tensor] = []

    def denoise() -> None:
        with CachedFrames(model.config, [s.caches for s in sessions], frames, clean=False) as memory:
            out.append(model(case["in/x"], case["in/t"], memory, entries))

    compare_parts(case, model, "out/denoise", denoise)
    case.close(out[0], "out/denoise/out")
    if "in/y" in case:
        for call in ("write", "denoise"):
            case.close_if_there(model.y_embedder.y_proj(case["in/y"]), f"out/{call}/y_proj")
    clip = torch.cat([case["in/z0"], case["in/x"]], dim=2)
    given = case["in/z0"].shape[2]
    whole = WholeClip(model.config, len(clip), clip.shape[2], given)
    times = clip_times(case["in/t"], clip.shape[2], given)
    case.close(model(clip, times, whole, entries), "out/uncached_full/out")


def compare_parts(case: Case, model: CausalSTDiT2, prefix: str, call: Callable[[], None]) -> None:
    watched = {"x_embed": model.x_embedder, "t_emb": model.t_embedder, "t_mlp": model.t_block}
    watched["final"] = model.final_layer
    for i, block in enumerate(model.blocks):
        watched |= {f"b{i}.{part}": getattr(block, part) for part in ("attn", "attn_cf", "attn_temp", "mlp")}
        watched |= {f"b{i}.cross_attn": block.cross_attn, f"b{i}.out": block}
    seen: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out))
        for name, module in watched.items()
        if module is not None
    ]
    call()
    for hook in hooks:
        hook.remove()
    checked = 0
    for name, actual in seen.items():
        full = f"{prefix}/{name}"
        if full in case:
            case.close(actual.reshape(case[full].shape), full)
            checked += 1
    assert checked >= 2 * model.config.depth, f"only {checked} parts of {prefix} were compared"


def equality(case: Case) -> None:
    """The cached stream, the uncached one that forgets old frames, and one pass under the band mask."""
    meta = case.meta
    source = Case.read((case.folder / meta["stream_file"]).with_suffix(".json"))
    model = build(source)
    sampler = ChunkSampler(model, IDDPM(source.meta["num_sampling_steps"]))
    cached = run(source, sampler)
    case.close(cached, "out/z_cached")
    limit = meta["max_condition_frames"]
    truncating = rolled_out(source, sampler, lambda done: (max(0, done - limit), None))
    case.close(truncating, "out/z_uncached_truncating")
    if meta.get("max_abs_diff_cached_vs_full_recompute_with_band_mask", math.inf) > meta["tolerance"]["atol"]:
        return  # the official caches keep other prefix frames than a recomputation sees (ca2vdm.md §11.5)
    given, chunk = meta["given_frames"], meta["chunk_len"]
    total = cached.shape[2]
    starts = [0] * given + [given + (f - given) // chunk * chunk for f in range(given, total)]

    def banded(done: int) -> tuple[int, Tensor | None]:
        frames = done + chunk
        own = clip_mask(model.config, frames, done)
        mask = band_mask(starts[:frames], limit)
        if own is not None:
            mask[done:, done:] = own[done:, done:]
        return 0, mask

    torch.testing.assert_close(
        rolled_out(source, sampler, banded), cached, atol=case.meta["tolerance"]["atol"], rtol=1e-4
    )


def rolled_out(
    case: Case,
    sampler: ChunkSampler,
    view: Callable[[int], tuple[int, Tensor | None]],
) -> Tensor:
    """The stream without caches; `view` gives the first frame to recompute and the mask, of the frames done."""
    meta = case.meta
    entries = texts(case, sampler.model, meta["cfg_scale"] > 1) or [()] * meta["batch"]
    done = case["in/z0"]
    for chunk in range(meta["ar_steps"]):
        first, mask = view(done.shape[2])
        past = done[:, :, first:]
        draw = draws(case, chunk, done.shape[2])

        def predict(x: Tensor, t: int) -> Tensor:
            parts = [
                sampler.recompute(p[None], one[None], t, first, entry, meta["cfg_scale"], mask)  # noqa: B023
                for p, one, entry in zip(past, x, entries, strict=True)  # noqa: B023
            ]
            return torch.cat(parts)

        done = torch.cat([done, sampler.denoise(predict, draw)], dim=2)
    return done


def sampler_tables(case: Case) -> None:
    """Tables, ancestral and deterministic sampling of a toy network, and noising, for each number of steps."""
    tables = (
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
    )
    for number, expected in case.meta["cases"].items():
        diffusion = IDDPM(int(number))
        assert diffusion.timestep_map == expected["timestep_map"]
        for table in tables:
            case.close(getattr(diffusion, table), f"out/{number}/{table}")
        z, noise = case[f"in/{number}/z"], case[f"in/{number}/noise"]
        x = y = z
        for i, step in enumerate(reversed(range(diffusion.steps))):
            t = diffusion.timestep_map[step]
            x = diffusion.ddpm(x, toy(x, t), step, noise[i])
            y = diffusion.ddim(y, toy(y, t), step)
        case.close(x, f"out/{number}/ddpm")
        case.close(y, f"out/{number}/ddim_eta0")
        half = diffusion.q_sample(z, diffusion.steps // 2, case[f"in/{number}/q_noise"])
        case.close(half, f"out/{number}/q_sample_at_half")


def toy(x: Tensor, t: int) -> Tensor:
    """The fixture's `toy_model`."""
    eps = 0.7 * x * torch.cos(torch.tensor(t / 300)) + 0.1 * torch.sin(3 * x)
    return torch.cat([eps, torch.tanh(x + t / 1000)], dim=1)


def loss(case: Case) -> None:
    model = build(case)
    given, step = case.meta["prefix_len"], case.meta["prefix_perturb_t"]
    perturb = (step, case["in/perturb_noise"]) if step > 0 else None
    entries = [entry[-1] for entry in texts(case, model, guided=False)] or None
    found = training_loss(model, case["in/x_start"], case["in/t"], case["in/noise"], given, perturb, entries)
    case.close(found.mse, "out/mse")
    case.close(found.vb, "out/vb")
    case.close(found.total, "out/loss")


def flops(case: Case) -> None:
    """The counts of the released size over stream length, as the fixture's `definition` states them."""
    sizes = STDiTConfig(mask_channel=False, caption_channels=4096)
    for name, table in case.meta["tables"].items():
        limit = None if name == "P_max=unbounded" else int(name.removeprefix("P_max="))
        for row in table:
            past = 1 + FLOP_CHUNK * row["k"] if limit is None else min(1 + FLOP_CHUNK * row["k"], limit)
            assert past == row["P_k"]
            for text, tokens in (("text", sizes.text_len), ("notext", 0)):
                compare_flops(sizes, past, tokens, row[text])
    plain = dataclasses.replace(sizes, prefix_frames=0)
    for call, name in ((denoise_call, "cached"), (clip_call, "ext")):
        breakdown = case.meta[f"breakdown_{name}_call_P41_text_GF"]
        found = call(plain, 41, FLOP_CHUNK, sizes.text_len)
        for part, wanted in breakdown.items():
            assert round(getattr(found, part) / 1e9, 2) == wanted, part
    fixed = clip_call(plain, 8, FLOP_CHUNK, sizes.text_len).total
    assert round(fixed / 1e9, 1) == case.meta["OS_Fix_call_GF_text(8 cond + 8)"]
    compare_totals(sizes, case.meta["80_frames_100_steps_Pmax41_PFLOP"])


FLOP_CHUNK = 8  # frames, of every table (the definition says so in words)


def compare_flops(sizes: STDiTConfig, past: int, tokens: int, row: dict[str, float]) -> None:
    plain = dataclasses.replace(sizes, prefix_frames=0)
    found = {
        "bidirectional_ext": clip_call(plain, past, FLOP_CHUNK, tokens),
        "causal_nocache_skip": clip_call(plain, past, FLOP_CHUNK, tokens, skips=True),
        "causal_nocache_PE": clip_call(sizes, past, FLOP_CHUNK, tokens),
        "cached_noPE": denoise_call(plain, past, FLOP_CHUNK, tokens),
        "write_noPE": write_call(plain, past, FLOP_CHUNK, tokens),
        "cached_PE": denoise_call(sizes, past, FLOP_CHUNK, tokens),
        "write_PE": write_call(sizes, past, FLOP_CHUNK, tokens),
    }
    for name, call in found.items():
        assert round(call.total / 1e9, 1) == row[f"{name}_GF"], (name, past)
    for steps in (100, 4):
        cached = steps * found["cached_noPE"].total + found["write_noPE"].total
        ratio = steps * found["bidirectional_ext"].total / cached
        assert round(ratio, 3) == row[f"ratio_chunk_total_N{steps}"]


def compare_totals(sizes: STDiTConfig, wanted: dict[str, float]) -> None:
    """80 frames: 10 chunks of 100 steps, a queue of 41 frames, captioned; one timestep for a clip without cache."""
    plain = dataclasses.replace(sizes, prefix_frames=0)
    pasts = [min(1 + FLOP_CHUNK * k, 41) for k in range(10)]
    tokens = sizes.text_len

    def cached(config: STDiTConfig) -> float:
        calls = (
            (denoise_call(config, past, FLOP_CHUNK, tokens), write_call(config, past, FLOP_CHUNK, tokens))
            for past in pasts
        )
        return sum(100 * step.total + write.total for step, write in calls) / 1e15

    def uncached(past: int) -> int:
        return 100 * clip_call(plain, past, FLOP_CHUNK, tokens, timestep_per_frame=False).total

    ext = sum(uncached(past) for past in pasts) / 1e15
    fixed = 1000 * clip_call(plain, 8, FLOP_CHUNK, tokens).total / 1e15  # its count has one timestep a frame
    found = {"OS_Ext": ext, "OS_Fix": fixed, "Ca2_noPE": cached(plain), "Ca2_PE": cached(sizes)}
    for name, value in found.items():
        assert value == pytest.approx(wanted[name], rel=1e-9), name


REPLAYS: dict[tuple[str, str], Callable[[Case], None]] = {
    ("ca2vdm", "stream"): stream,
    ("ca2vdm", "single_denoiser_call"): single_call,
    ("ca2vdm", "equality"): equality,
    ("ca2vdm", "sampler"): sampler_tables,
    ("ca2vdm", "training_loss"): loss,
    ("ca2vdm", "flops_reference"): flops,
}
