"""Replays of InfiniteVGGT and its parts (infinitevggt.md)."""

from __future__ import annotations

import io
import json
import re
from dataclasses import astuple, dataclass, field

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from riverrun.kernels.cache import CacheSpec, KVCache
from riverrun.kernels.policies import DiverseKeys, Full, PlannedPolicy, adaptive_budgets, diverse_rows
from riverrun.models.geometry import dpt, metrics, poses, vggt
from riverrun.models.geometry.fitting import network_size
from riverrun.models.geometry.layers import turned
from riverrun.models.geometry.memory import GeometryStream
from riverrun.models.geometry.preprocess import prepare, prepare_all
from riverrun.models.geometry.tracker import TrackConfig
from riverrun.models.geometry.vggt import VGGT, Geometry, VGGTConfig
from riverrun.models.weights import load_strict
from riverrun.tests.parity.cases import Case


def build(case: Case) -> VGGT:
    """The model of a case, with the parts it has weights for."""
    meta, weights = case.meta["config"], case.tensors("w/")
    has_tracker = any(name.startswith("track_head.") for name in weights)
    config = VGGTConfig(
        image=meta["img_size"],
        patch=meta["patch_size"],
        dim=meta["embed_dim"],
        depth=meta["depth"],
        heads=meta["num_heads"],
        mlp_ratio=meta["mlp_ratio"],
        registers=meta["num_register_tokens"],
        rope_theta=meta["rope_freq"],
        dino_depth=meta["dino_depth"],
        dino_heads=meta["dino_heads"],
        dino_mlp_ratio=meta["dino_mlp_ratio"],
        dino_registers=weights["aggregator.patch_embed.register_tokens"].shape[1],
        camera_depth=meta["cam_trunk_depth"],
        camera_heads=meta["cam_heads"],
        camera_mlp_ratio=meta["cam_mlp_ratio"],
        camera_iterations=meta["cam_iterations"],
        dpt_features=meta["dpt_features"],
        dpt_channels=tuple(meta["dpt_out_channels"]),
        dpt_layers=tuple(meta["dpt_layers"]),
        track=track_config(case) if has_tracker else None,
    )
    model = VGGT(config)
    load_strict(model, weights)
    return model.eval()


def track_config(case: Case) -> TrackConfig:
    """From the case, or the JSON of the file that holds the tracker's weights."""
    others = (json.loads((case.folder / name).with_suffix(".json").read_text()) for name in case.meta["weights"])
    meta = next(found["track"] for found in (case.meta, *others) if "track" in found)
    return TrackConfig(
        features=meta["features"],
        iterations=meta["iters"],
        levels=meta["corr_levels"],
        radius=meta["corr_radius"],
        hidden=meta["hidden_size"],
    )


def images(case: Case) -> Tensor:
    """The case's own, or those of the case that it, or the one it belongs to, names."""
    meta = case.meta
    if "in/images" in case:
        return case["in/images"]
    if "inputs" not in meta:
        meta = json.loads((case.folder / f"{meta['see'].split()[0]}.json").read_text())
    return load_file(case.folder / f"{meta['inputs'].split()[0]}.safetensors")["in/images"]


@dataclass(frozen=True)
class RecordingKeys(DiverseKeys):
    """Remembers what it chose, layer by layer, until it is asked."""

    chosen: list[Tensor | None] = field(default_factory=list)

    def select(self, keys: Tensor, budget: int) -> tuple[Tensor, Tensor] | None:
        found = super().select(keys, budget)
        self.chosen.append(None if found is None else found[0][0])
        return found


class Ids:
    """Which token of the stream each cached row is: [heads, n] a layer."""

    def __init__(self, layers: int, heads: int) -> None:
        self.rows = [torch.empty(heads, 0, dtype=torch.int64) for _ in range(layers)]

    def move(self, policy: RecordingKeys, t: int) -> list[int]:
        """Takes in frame t; returns the layers that were pruned."""
        new = torch.arange(t * policy.frame, (t + 1) * policy.frame)
        chosen, policy.chosen[:] = list(policy.chosen), []
        for layer, kept in enumerate(chosen):
            ids = torch.cat([self.rows[layer], new.expand(len(self.rows[layer]), -1)], dim=1)
            self.rows[layer] = ids if kept is None else ids.gather(1, kept)
        return [layer for layer, kept in enumerate(chosen) if kept is not None]


def open_stream(model: VGGT, total: int | None, frames: Tensor) -> GeometryStream:
    tokens = model.config.tokens(*frames.shape[2:])
    policy: PlannedPolicy = Full(len(frames) * tokens)
    rows = model.config.camera_iterations * len(frames)
    if total is not None:
        policy = RecordingKeys(total, model.config.depth, tokens)
    return vggt.open_stream(model.config, policy, Full(rows))


def stream(case: Case) -> None:
    """stream_unbounded, stream_bounded: frame by frame, all that is kept and all that is said."""
    model, frames = build(case), images(case)
    assert model.config.tokens(*frames.shape[2:]) == case.meta["tokens_per_frame"]
    is_bounded = case.kind == "stream_bounded"
    opened = open_stream(model, case.meta["total_budget"] if is_bounded else None, frames)
    ids, pairs = Ids(model.config.depth, model.config.heads), range(model.config.depth)
    results: list[Geometry] = []
    for t, frame in enumerate(frames.split(1)):
        policy = opened.tokens.policy
        if isinstance(policy, DiverseKeys):
            assert policy.budgets(opened.scores) == case["out/budgets"][t].tolist()
        results.append(model.frame(frame, [opened], wanted=pairs))
        assert opened.tokens.lengths == case["out/cache_len"][t].tolist()
        assert opened.poses.lengths == [int(case["out/camera_cache_len"][t])] * opened.poses.spec.layers
        close_row(case, opened.scores, "out/last_scores_after", t)
        if isinstance(policy, RecordingKeys):
            assert sum(opened.tokens.lengths) <= policy.total
            compare_ids(case, ids, ids.move(policy, t), t)
        compare_state(case, opened, t)
        for layer in pairs:
            case.close_if_there(results[-1].pairs[layer][0], f"out/aggregator_tokens_f{t}_l{layer}")
    compare_results(case, results, *frames.shape[2:])
    if "out/camera_head_batch_causal" in case:
        case.close(model.clip(frames).poses[-1], "out/camera_head_batch_causal")


def close_row(case: Case, actual: Tensor, name: str, row: int) -> None:
    tolerance = case.meta["tolerance"]
    torch.testing.assert_close(actual, case[name][row], atol=tolerance["atol"], rtol=tolerance["rtol"])


def compare_ids(case: Case, ids: Ids, pruned: list[int], t: int) -> None:
    expected = {int(name) for name in case.tensors(f"out/kept_ids_f{t}_l")}
    assert expected <= set(pruned)
    for layer in expected:
        assert torch.equal(ids.rows[layer], case[f"out/kept_ids_f{t}_l{layer}"].long())


def compare_state(case: Case, opened: GeometryStream, t: int) -> None:
    for prefix, cache in {"": opened.tokens, "cam_": opened.poses}.items():
        for layer, length in enumerate(cache.lengths):
            for part in ("k", "v"):
                rows = cache.slots(part, layer)[:, :length].transpose(1, 2)
                case.close_if_there(rows, f"out/state_f{t}/{prefix}{part}_l{layer}")


def compare_results(case: Case, results: list[Geometry], height: int, width: int) -> None:
    encoded = torch.cat([result.poses for result in results], dim=1)  # (4, T, 9)
    extrinsic, intrinsic = poses.matrices(encoded[-1], height, width)
    last = case.meta["config"]["depth"] - 1
    found = {
        "pose_enc": encoded[-1],
        "pose_enc_iterations": encoded.transpose(0, 1),
        "extrinsic": extrinsic,
        "intrinsic": intrinsic,
        "depth": torch.cat([result.depth for result in results])[..., None],
        "depth_conf": torch.cat([result.depth_confidence for result in results]),
        "world_points": torch.cat([result.points for result in results]),
        "world_points_conf": torch.cat([result.point_confidence for result in results]),
        "aggregator_last_tokens": torch.cat([result.pairs[last] for result in results]),
    }
    for name, value in found.items():
        case.close_if_there(value, f"out/{name}")


def state(case: Case) -> None:
    """Every kept state is reached, and from each the stream goes on as the one it belongs to."""
    model, frames = build(case), images(case)
    whole = Case.read(case.folder / f"{case.meta['see'].split()[0]}.json")
    opened = open_stream(model, case.meta["total_budget"], frames)
    for t, frame in enumerate(frames.split(1)):
        model.frame(frame, [opened])
        compare_state(case, opened, t)
    for t in sorted({int(re.findall(r"\d+", name)[0]) for name in case.tensors("out/state_f")}):
        resumed = open_stream(model, case.meta["total_budget"], frames)
        fill(case, resumed, t, model.config.tokens(*frames.shape[2:]))
        resumed.scores = whole["out/last_scores_after"][t].clone()
        for later in range(t + 1, len(frames)):
            result = model.frame(frames[later : later + 1], [resumed])
            close_row(whole, result.poses[-1, 0], "out/pose_enc", later)
            assert resumed.tokens.lengths == whole["out/cache_len"][later].tolist()


def fill(case: Case, opened: GeometryStream, t: int, tokens: int) -> None:
    """Puts the state after frame t, of so many tokens a frame, into empty caches, by their own snapshot form."""
    for prefix, cache in {"": opened.tokens, "cam_": opened.poses}.items():
        meta, _ = cache.snapshot()
        rows = {
            part: [
                case[f"out/state_f{t}/{prefix}{part}_l{layer}"].transpose(1, 2) for layer in range(cache.spec.layers)
            ]
            for part in ("k", "v")
        }
        lengths = [layer.shape[1] for layer in rows["k"]]
        new = case.meta["config"]["cam_iterations"] if cache is opened.poses else tokens
        filled = meta | {"cursor": (t + 1) * new, "lengths": lengths}
        cache.restore(filled, {part: torch.cat(layers, dim=1) for part, layers in rows.items()})


def eviction(case: Case) -> None:
    for at in case.meta["cases"]:
        i, (batch, heads, count, dim) = at["case"], at["shape"]
        k, v = (case[f"in/{part}_{i}"].transpose(1, 2) for part in ("k", "v"))
        cache = KVCache(CacheSpec("global", 1, heads, dim, "rotated", 16, rows=batch), Full(count))
        cache.begin(0, count)
        cache.write(0, k, v)
        assert (count > at["budget"]) == at["pruned"]
        if at["pruned"]:
            kept, scores = diverse_rows(cache.keys(0), at["anchors"], at["budget"])
            assert torch.equal(kept, case[f"out/kept_{i}"].long())
            case.close(scores, f"out/scores_{i}")
            assert abs(float(scores.mean()) - at["avg_score"]) < 1e-5
            cache.keep(0, kept)
        assert torch.equal(cache.keys(0).transpose(1, 2), case[f"out/k_{i}"])
        assert torch.equal(cache.values(0).transpose(1, 2), case[f"out/v_{i}"])
    for at in case.meta["budget_cases"]:
        i = at["case"]
        assert adaptive_budgets(case[f"in/last_scores_{i}"], at["total_budget"]) == case[f"out/budgets_{i}"].tolist()


def components(case: Case) -> None:
    model = build(case)
    config, aggregator = model.config, model.aggregator
    for name, image in case.tensors("in/image_").items():
        height, width = image.shape[1:]
        case.close(aggregator.patch_embed.positions(height, width)[0], f"out/pos_embed_{name}")
        case.close(aggregator.patches(image[None])[0], f"out/patch_tokens_{name}")
    x, at = case["in/rope_x"].transpose(1, 2), case["in/rope_pos"][0]
    turns = aggregator.turns_at(at[:, 0], at[:, 1])
    case.close(turned(x, turns).transpose(1, 2), "out/rope_y")
    compare_grid(case)
    for kind, name in {"inv_log": "act_inv_log", "exp": "act_exp"}.items():
        channels = case[f"out/{name}"].shape[-1] + 1
        values, confidence = dpt.activate(case["in/act_x4"][:, :channels], kind)
        case.close(values, f"out/{name}")
        case.close(confidence, f"out/{name}_conf")
    pairs = {int(name): x[None] for name, x in case.tensors("in/dpt_tokens_l").items()}
    for name in case.tensors("out/dpt_depth_conf_"):
        height, width = map(int, name.split("x"))
        depth, confidence = model.depth_head.dense(model.patch_tokens(pairs), height, width, config.patch)
        case.close(depth[0], f"out/dpt_depth_{name}")
        case.close(confidence[0], f"out/dpt_depth_conf_{name}")


def compare_grid(case: Case) -> None:
    (name,) = case.tensors("out/uv_grid_")
    width, height, aspect = (float(number) for number in re.fullmatch(r"w(\d+)_h(\d+)_ar([\d.]+)", name).groups())
    x, y = dpt.axis_places(int(width), int(height), aspect)
    case.close(torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1), f"out/uv_grid_{name}")
    for channels in case.tensors("out/uv_embed_c"):
        by_column, by_row = (dpt.axis_embedding(axis, int(channels) // 2) for axis in (x, y))
        whole = [by_column[None].expand(len(y), -1, -1), by_row[:, None].expand(-1, len(x), -1)]
        case.close(torch.cat(whole, dim=-1), f"out/uv_embed_c{channels}")


def batch_causal(case: Case) -> None:
    """A whole clip at once, tracks included."""
    model, frames = build(case), case["in/images"]
    last = model.config.depth - 1
    result = model.clip(frames, wanted={last, *model.config.dpt_layers})
    found = {
        "pose_enc": result.poses[-1],
        "depth": result.depth[..., None],
        "depth_conf": result.depth_confidence,
        "world_points": result.points,
        "world_points_conf": result.point_confidence,
        "aggregator_tokens_last": result.pairs[last],
    }
    for name, value in found.items():
        case.close_if_there(value, f"out/{name}")
    if "in/query_points" in case and model.config.track:
        compare_tracks(case, model, result)


def compare_tracks(case: Case, model: VGGT, result: Geometry) -> None:
    height, width = case["in/images"].shape[2:]
    maps = model.track_head.feature_extractor(model.patch_tokens(result.pairs), height, width, model.config.patch)
    case.close(maps[0], "out/track_features_f0")
    tracks, seen, sure = model.track(case["in/images"], result.pairs, case["in/query_points"])
    for number, (found, expected) in enumerate(zip(tracks, case["out/track_iterations"], strict=True)):
        torch.testing.assert_close(found, expected, atol=1e-3 if number < 2 else 3e-2, rtol=1e-4)
    for head, name in ((seen, "vis"), (sure, "track_conf")):
        torch.testing.assert_close(head, case[f"out/{name}"], atol=1e-3 if len(tracks) < 3 else 3e-2, rtol=1e-3)


def pose_unproject(case: Case) -> None:
    height, width = case.meta["image_hw"]
    extrinsic, intrinsic = poses.matrices(case["in/pose_enc"], height, width)
    case.close(poses.rotation_matrix(case["in/pose_enc"][:, 3:7]), "out/rotation")
    case.close(extrinsic, "out/extrinsic")
    case.close(intrinsic, "out/intrinsic")
    case.close(poses.quaternion_of(case["out/rotation"]), "out/quat_roundtrip")
    case.close(poses.encoding(case["out/extrinsic"], case["out/intrinsic"], height, width), "out/pose_enc_roundtrip")
    case.close(poses.camera_to_world(extrinsic), "out/cam_to_world")
    depth = case["in/depth"][..., 0]
    count = len(depth)
    case.close(poses.world_points(depth, extrinsic[:count], intrinsic[:count]), "out/unprojected_world_points")
    case.close(poses.camera_points(depth[:1], intrinsic[:1])[0], "out/cam_points_0")
    assert torch.equal(poses.is_valid(depth[0]), case["out/valid_mask_0"])


def preprocess(case: Case) -> None:
    pictures = {int(i): picture(pixels.numpy()) for i, pixels in case.tensors("in/image_").items()}
    for at in case.meta["cases"]:
        i, mode = at["image"], at["mode"]
        assert (pictures[i].mode, list(pictures[i].size)) == (at["pil_mode"], at["input_wh"])
        result = prepare(pictures[i], fit=mode)
        assert [1, *result.shape] == at["output_shape"]
        assert network_size(pictures[i].height, pictures[i].width, fit=mode) == tuple(result.shape[1:])
        case.close(result[:, ::23, ::23], f"out/{mode}_{i}_sub")
        case.close(result.mean(dim=(1, 2)), f"out/{mode}_{i}_mean")
    mixed = case.meta["mixed"]
    together = prepare_all([pictures[i] for i in mixed["images"]], fit=mixed["mode"])
    assert list(together.shape) == mixed["output_shape"]
    case.close(together[:, :, ::37, ::37], "out/mixed_crop_sub")


def picture(pixels: np.ndarray) -> Image.Image:
    """As the fixture was made: saved as PNG and opened again."""
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return Image.open(file)


def geometry_metrics(case: Case) -> None:
    truth, found = (case["in/gt_points"], case["in/gt_normals"]), (case["in/rec_points"], case["in/rec_normals"])
    for name, (points, others) in {"accuracy": (found, truth), "completion": (truth, found)}.items():
        errors = metrics.cloud_errors(points[0], others[0], points[1], others[1])
        case.close(torch.tensor(astuple(errors)), f"out/{name}")
    case.close(torch.tensor([metrics.completion_ratio(truth[0], found[0])]), "out/completion_ratio")
    for alignment in case.tensors("out/depth_"):
        depths = metrics.depth_errors(case["in/pred_depth"], case["in/gt_depth"], alignment)
        *values, within, valid = astuple(depths)
        case.close(torch.tensor([*values, *within, valid]), f"out/depth_{alignment}")
    estimate, reference = (path(case[f"in/{who}_xyz"], case[f"in/{who}_quat_xyzw"]) for who in ("est", "ref"))
    similarity = metrics.umeyama(estimate[:, :3, 3], reference[:, :3, 3])
    case.close(similarity.rotation, "out/umeyama_R")
    case.close(similarity.translation, "out/umeyama_t")
    case.close(torch.tensor([similarity.scale]), "out/umeyama_s")
    case.close(torch.tensor(astuple(metrics.trajectory_errors(estimate, reference))), "out/ate_rpe_trans_rpe_rot")


def path(places: Tensor, quaternions: Tensor) -> Tensor:
    """Camera-to-world [T, 4, 4]."""
    made = torch.eye(4, dtype=torch.float64).repeat(len(places), 1, 1)
    made[:, :3, :3] = poses.rotation_matrix(quaternions)
    made[:, :3, 3] = places
    return made


REPLAYS = {
    ("infinitevggt", "stream_unbounded"): stream,
    ("infinitevggt", "stream_bounded"): stream,
    ("infinitevggt", "stream_bounded_state"): state,
    ("infinitevggt", "eviction"): eviction,
    ("infinitevggt", "components"): components,
    ("infinitevggt", "batch_causal"): batch_causal,
    ("infinitevggt", "pose_unproject"): pose_unproject,
    ("infinitevggt", "preprocess"): preprocess,
    ("infinitevggt", "metrics"): geometry_metrics,
}
