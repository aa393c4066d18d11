"""Replays of InfVSR: transformer, VAE streams and tiles, guidance, scenes, and the whole (infvsr_flashvsr.md A1)."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from riverrun.kernels.rope import angles_3d, rotate, rotation
from riverrun.kernels.shared import TextEntry
from riverrun.models.state import Waiting
from riverrun.models.super_resolution.guidance import VisualGuidance, merge_dape, trunk_keys
from riverrun.models.super_resolution.infvsr import InfVSR
from riverrun.models.super_resolution.infvsr_state import InfVSRParams, InfVSRState
from riverrun.models.super_resolution.restorer import Restorer, Scene
from riverrun.models.super_resolution.scenes import CutFilter, SceneChunk, SceneSplitter
from riverrun.models.super_resolution.swin import SwinConfig
from riverrun.models.super_resolution.tiles import TiledVAE, Tiling
from riverrun.models.wan.dit import WanConfig, WanModel
from riverrun.models.wan.stream import TextMemories
from riverrun.models.wan.vae import WAN21_VAE, VAEConfig, WanVAE
from riverrun.models.weights import load_strict
from riverrun.tests.parity.cases import Case
from riverrun.tests.parity.wan import kept


class BandMemory:
    """A whole stream at once: each chunk sees itself and the `previous` chunks before it. What a cache must equal."""

    def __init__(self, config: WanConfig, chunks: list[int], grid: tuple[int, int], previous: int = 1) -> None:
        """chunks: latent frames of each. grid: (h, w) in tokens."""
        tokens = torch.tensor(chunks) * grid[0] * grid[1]
        chunk = torch.arange(len(chunks)).repeat_interleave(tokens)
        apart = chunk[:, None] - chunk[None]
        self.mask = (apart >= 0) & (apart <= previous)
        self.turn = rotation(angles_3d(torch.arange(sum(chunks)), *grid, config.head_dim))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (rotate(q, self.turn), rotate(k, self.turn), v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask).transpose(1, 2)


def dit(sizes: dict[str, Any], weights: dict[str, Tensor], context: int) -> WanModel:
    names = ("dim", "ffn_dim", "num_heads", "num_layers", "in_dim", "out_dim", "freq_dim")
    config = WanConfig(
        **{name: sizes[name] for name in names},
        text_dim=weights["text_embedding.0.weight"].shape[1],
        text_len=context,
        patch_size=tuple(sizes.get("patch_size", (1, 2, 2))),
        eps=sizes.get("eps", 1e-6),
    )
    model = WanModel(config)
    load_strict(model, weights)
    return model.eval()


def vae(sizes: dict[str, Any], weights: dict[str, Tensor]) -> WanVAE:
    stages = len(sizes["mult"]) - 1
    config = VAEConfig(
        dim=sizes["dim"],
        z_dim=weights["conv2.weight"].shape[0],
        dim_mult=tuple(sizes["mult"]),
        num_res_blocks=sizes["nres"],
        temporal_downsample=tuple(sizes.get("temporal_downsample", (False, *(True,) * (stages - 1)))),
        mean=WAN21_VAE.mean,
        std=WAN21_VAE.std,
    )
    model = WanVAE(config)
    load_strict(model, weights)
    return model.eval()


def guidance(sizes: dict[str, Any], weights: dict[str, Tensor]) -> VisualGuidance:
    config = SwinConfig(
        img_size=sizes["img_size"],
        patch_size=sizes["patch_size"],
        embed_dim=sizes["embed_dim"],
        depths=tuple(sizes["depths"]),
        num_heads=tuple(sizes["num_heads"]),
        window_size=sizes["window_size"],
        mlp_ratio=sizes["mlp_ratio"],
    )
    model = VisualGuidance(config, context_dim=weights["image_proj.weight"].shape[0])
    load_strict(model, trunk_keys(weights))
    return model.eval()


def compare_caches(case: Case, scenes: list[Scene], number: int) -> None:
    for layer, length in enumerate(scenes[0].cache.lengths):
        for part in ("k", "v"):
            rows = torch.cat([scene.cache.slots(part, layer)[:, :length].flatten(2) for scene in scenes])
            case.close_if_there(rows, f"out/cache_{part}/{number}/layer{layer}")


def dit_stream(case: Case) -> None:
    """Chunk by chunk; a far start without a cache; and the whole stream under the band mask. A row is a session."""
    meta, context = case.meta, case["in/context"]
    model = dit(meta["config"], case.tensors("w/"), context.shape[1])
    latents = [case[f"in/latents/{i}"].transpose(1, 2) for i in range(len(meta["chunks"]))]  # (B, F, C, H, W)
    batch, size, timestep = len(latents[0]), latents[0].shape[-2:], float(case["in/timestep"][0])
    contexts = context.expand(batch, -1, -1).split(1)
    entries = [TextEntry(*model.text_keys_values(model.embed_text(row))) for row in contexts]
    restorer = Restorer(model, timestep=timestep, sigma=meta["sigma"], chunk=max(meta["chunks"]))
    scenes = [restorer.open(size) for _ in entries]
    for i, chunk in enumerate(latents):
        restored, flow = restorer.call(scenes, entries, chunk)
        case.close_if_there(flow.transpose(1, 2), f"out/prediction/{i}")
        case.close_if_there(restored.transpose(1, 2), f"out/restored/{i}")
        compare_caches(case, scenes, i)
    for name in case.tensors("out/prediction_start"):
        far = [restorer.open(size, start=int(name.removesuffix("_nocache"))) for _ in entries]
        case.close(restorer.call(far, entries, latents[0])[1].transpose(1, 2), f"out/prediction_start{name}")
    _, rows, columns = model.config.patch_size
    band = BandMemory(model.config, meta["chunks"], (size[0] // rows, size[1] // columns))
    whole = torch.cat(latents, dim=1)
    times = torch.full(whole.shape[:2], timestep)
    flow = model(whole.transpose(1, 2), times, band, TextMemories(entries))
    case.close_if_there(flow, "out/prediction_whole_banded_mask")


def vae_sequence(case: Case) -> None:
    """Plain and in tiles; each decode from the latents of its own encode."""
    meta = case.meta
    model = vae(meta["vae"], case.tensors("w/"))
    pixels = (case["in/frames_u8"].float() / 255 * 2 - 1).permute(0, 3, 1, 2)[None]  # (1, T, 3, H, W)
    tile = meta["tile"]
    for form, tiling in {"plain": Tiling(), "tiled": Tiling(0, tile["size"], tile["stride"])}.items():
        tiled = TiledVAE(model, tiling)
        histories = tiled.open(*pixels.shape[-2:])
        latents, frames = [], []
        for chunk in pixels.split(meta["pixel_chunks"], dim=1):
            latents.append(tiled.encode(chunk, histories))
            frames.append(tiled.decode(latents[-1], histories))
        case.close_if_there(torch.cat(latents, dim=1).transpose(1, 2), f"out/{form}/latents")
        case.close_if_there(torch.cat(frames, dim=1).transpose(1, 2), f"out/{form}/frames")
        case.close_if_there(frames[-1].transpose(1, 2), f"out/{form}/frames_last_chunk")
        if form == "plain":
            (memory,) = histories.values()
            for part in ("enc", "dec"):
                compare_histories(case, kept(memory, part), part)


def compare_histories(case: Case, slots: list[Tensor | None], part: str) -> None:
    shapes = case.meta["history_slot_shapes_after_last_chunk"][part]
    assert [None if slot is None else list(slot.shape) for slot in slots] == [s for s in shapes if s is not None]
    for name in case.tensors(f"out/plain/final_{part}_history/"):
        slot = slots[int(name)]
        assert slot is not None
        case.close(slot, f"out/plain/final_{part}_history/{name}")


def visual_guidance(case: Case) -> None:
    weights, adapter = case.tensors("w/"), case.tensors("w_dape/")
    frame = case["in/frame01"]
    plain = guidance(case.meta["config"], weights)
    case.close(plain.prepare(frame), "out/prepared")
    case.close_if_there(plain(frame), "out/features_ram_only")
    merged = merge_dape(weights, adapter)
    for name in case.tensors("out/merged/"):
        case.close(merged[name], f"out/merged/{name}")
    case.close(guidance(case.meta["config"], merged)(frame), "out/features")


def scenes(case: Case) -> None:
    """The plan, when each chunk was known, every frame's score and the detector's cuts."""
    meta = case.meta
    splitter = SceneSplitter(*meta["thresholds"])
    detector, events, plan, scores = CutFilter(), [], [], []
    frames = case["in/frames_u8_rgb"].numpy()[: meta.get("max_frames")]
    for number, pixels in enumerate(frames):
        scores.append(splitter.add(Waiting(pixels, number, 1, 0)))
        cut = detector.cut(number, scores[-1] >= meta["thresholds"][0])
        events += [] if cut is None else [[number, [cut]]]
        plan += taken(splitter)
    splitter.cut()
    plan += taken(splitter)
    assert plan == case["out/chunks"].tolist()
    case.close_if_there(torch.tensor(scores), "out/frame_score")
    if "detector_events" in meta:
        assert events == meta["detector_events"]


def taken(splitter: SceneSplitter) -> list[list[int]]:
    """Rows of the plan: frames, new scene, new reference, frames seen by then."""
    rows = []
    while chunk := splitter.take():
        rows.append([len(chunk.frames), int(chunk.is_new_scene), int(chunk.is_new_reference), splitter.seen])
    return rows


class RecordedRestorer(Restorer):
    """Compares every prediction with the fixture."""

    case: Case
    number = 0

    def call(self, scenes: Sequence[Scene], contexts: Sequence[TextEntry], z: Tensor) -> tuple[Tensor, Tensor]:
        restored, flow = super().call(scenes, contexts, z)
        self.case.close_if_there(flow.transpose(1, 2), f"out/prediction/{self.number}")
        self.number += 1
        return restored, flow


class Recorded(InfVSR):
    """Compares what goes on inside with the fixture, chunk by chunk."""

    case: Case
    number = 0

    def _look_at(self, state: InfVSRState, context: Tensor) -> None:
        self.case.close(context, f"out/context/{self.number}")
        super()._look_at(state, context)

    def _enlarged(self, x: Tensor, is_first: bool) -> Tensor:
        pixels = super()._enlarged(x, is_first)
        self.case.close_if_there(pixels.transpose(0, 1)[None], f"out/padded/{self.number}")
        return pixels

    def _encode(self, state: InfVSRState, chunk: SceneChunk) -> Tensor:
        latents = super()._encode(state, chunk)
        self.case.close(latents.transpose(1, 2), f"out/latents/{self.number}")
        assert state.scene is not None
        assert state.scene.start == int(self.case[f"out/start_frame/{self.number}"])
        return latents

    def _decode(self, state: InfVSRState, latents: Tensor, chunk: SceneChunk) -> Tensor:
        self.case.close(latents.transpose(1, 2), f"out/restored/{self.number}")
        frames = super()._decode(state, latents, chunk)
        self.case.close_if_there(frames.transpose(0, 1)[None], f"out/frames/{self.number}")
        return frames


def recorded(case: Case, folder: Path) -> Recorded:
    """The stage itself, with the case's tensors as its files."""
    meta, swin = case.meta, case.meta["swin"]
    parts = {name: case.tensors(f"w/{name}.") for name in ("dit", "vae", "visual")}
    trunk = guidance(swin, parts["visual"])
    sizes = {
        "visual": asdict(trunk.config),
        "vae": asdict(vae(meta["vae"], parts["vae"]).config),
        "dit": asdict(dit(meta["dit"], parts["dit"], trunk.tokens).config),
    }
    for name, tensors in parts.items():
        save_file(tensors, folder / f"{name}.safetensors")
        (folder / f"{name}.json").write_text(json.dumps(sizes[name]))
    files = {"weights": "dit", "vae": "vae", "guidance": "visual"}
    paths = {arg: str(folder / f"{name}.safetensors") for arg, name in files.items()}
    configs = {f"{arg}_config": str(folder / f"{name}.json") for arg, name in files.items()}
    height, width = meta["lr_hw"]
    options = {name: meta[name] for name in ("scale", "timestep", "sigma")}
    model = Recorded(**paths, **configs, **options, height=height, width=width, max_pixels=height * width)
    longest = max(model._latents(row["frames"], row["new_scene"]) for row in meta["plan"])
    model.restorer = RecordedRestorer(model.model, meta["timestep"], meta["sigma"], chunk=longest)
    model.case = model.restorer.case = case
    return model


def pipeline_stream(case: Case) -> None:
    """The stage itself, led through the plan of the case; the tensors of each chunk and the bytes that go out."""
    with tempfile.TemporaryDirectory() as folder:
        model = recorded(case, Path(folder))
    state = model.open(InfVSRParams(), 0)
    for number, row in enumerate(case.meta["plan"]):
        model.number = number
        pixels = case[f"in/frames_u8/{number}"].numpy()
        assert len(pixels) == row["frames"]
        frames = tuple(Waiting(picture, 0, 1, 0) for picture in pixels)
        (chunk,) = model.restored([state], [SceneChunk(frames, row["new_scene"], row["update_reference"])])
        if f"out/frames/{number}" in case:
            expected = ((case[f"out/frames/{number}"][0] + 1) * 127.5).clamp(0, 255).permute(1, 2, 3, 0)
            assert (torch.from_numpy(chunk.data).int() - expected.int()).abs().max() <= 1


REPLAYS = {
    ("infvsr", "dit_stream"): dit_stream,
    ("infvsr", "pipeline_stream"): pipeline_stream,
    ("infvsr", "vae_sequence"): vae_sequence,
    ("infvsr", "visual_guidance"): visual_guidance,
    ("infvsr", "scenes"): scenes,
}
