"""EasyControl as a stage, on tiny random weights: what goes beyond the table of models."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from riverrun.kernels.attention import attention
from riverrun.kernels.rope import rotate
from riverrun.models.base import BadRequest, Chunk, Control, Corrupt, Snapshot, parse_params
from riverrun.models.generation import easycontrol
from riverrun.models.generation.easycontrol import EasyControl
from riverrun.models.generation.easycontrol_conditions import (
    AloneMemory,
    ConditionEntry,
    ConditionLoRAs,
    condition_ids,
    image_ids,
    joint_memory,
)
from riverrun.models.generation.easycontrol_images import fit, pixels
from riverrun.models.generation.easycontrol_state import EasyControlParams, EasyControlState
from riverrun.models.generation.flux import FLUX_DEV, FluxTransformer, turn_of
from riverrun.models.generation.flux_vae import FLUX_VAE, FluxVAE
from riverrun.tests.models.table import FLUX as ONE_BLOCK
from riverrun.tests.models.table import FLUX_VAE as VAE

FLUX = dataclasses.replace(ONE_BLOCK, num_layers=2, num_single_layers=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("weights")
    save_file(FluxTransformer(FLUX).state_dict(), folder / "flux.safetensors")
    save_file(FluxVAE(VAE).state_dict(), folder / "vae.safetensors")
    for name, count in {"subject": 1, "depth": 1, "pair": 2}.items():
        loras = {key: torch.randn_like(t) for key, t in ConditionLoRAs(FLUX, 4, count).state_dict().items()}
        save_file(loras, folder / f"{name}.safetensors")
    (folder / "flux.json").write_text(json.dumps(dataclasses.asdict(FLUX) | {"patch_size": 1, "_class_name": "x"}))
    (folder / "vae.json").write_text(json.dumps(dataclasses.asdict(VAE) | {"act_fn": "silu"}))
    return folder


def load(folder: Path, **options: object) -> EasyControl:
    files = {"weights": "flux.safetensors", "vae": "vae.safetensors"}
    files |= {"weights_config": "flux.json", "vae_config": "vae.json"}
    given: dict[str, object] = {name: str(folder / file) for name, file in files.items()}
    given |= {"subjects": {"subject": str(folder / "subject.safetensors")}}
    given |= {"spatials": {"depth": str(folder / "depth.safetensors")}}
    given |= {"height": 48, "width": 64, "max_pixels": 64 * 64, "cond_size": 32, "steps": 2, "text_len": 5}
    return EasyControl(**(given | options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model(folder: Path) -> EasyControl:
    return load(folder)


def prompt(number: int, revision: int = 0, *, tokens: int = 3, pooled: int | None = None) -> Control:
    """pooled: whose pooled row it has, its own if None."""
    embedding = np.random.default_rng(number).standard_normal((1 + tokens, 10), dtype=np.float32)
    if pooled is not None:
        embedding[0] = np.random.default_rng(pooled).standard_normal((1, 10), dtype=np.float32)
    return Control(revision, "prompt", f"prompt {number}", embedding)


def picture(number: int, frames: int = 1, height: int = 40, width: int = 50) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def chunk(port: str, number: int, frames: int = 1, pts: int = 0, revision: int = 0) -> Chunk:
    return Chunk(port, picture(number, frames), pts=pts, frame_ticks=3000, frames=frames, revision=revision)


def start(model: EasyControl, number: int = 1, seed: int = 5, **params: object) -> EasyControlState:
    """With a prompt, and a subject if it takes one."""
    state = model.open(EasyControlParams("x", **params), seed)  # type: ignore[arg-type]
    model.control(state, prompt(number))
    if "subject" in [port.name for port in model.describe(state.params).inputs]:
        model.push(state, chunk("subject", number))
    return state


def run(model: EasyControl, state: EasyControlState, steps: int, first: int = 100) -> list[np.ndarray]:
    images = []
    for i in range(steps):
        for port in state.waiting:
            model.push(state, chunk(port, first + i))
        images.append(model.step([state])[0][0].data)
    return images


def as_stored(snapshot: Snapshot) -> Snapshot:
    """What a store makes of it."""
    return Snapshot(json.loads(json.dumps(snapshot.meta)), snapshot.tensors)


def test_one_image_a_frame_at_its_time(model: EasyControl) -> None:
    state = model.open(EasyControlParams("x"), 5)
    assert not model.ready(state)
    model.push(state, chunk("depth", 1, frames=2, pts=6000, revision=2))
    model.control(state, prompt(1, revision=1))
    assert not model.ready(state), "the subject is missing"
    model.push(state, chunk("subject", 1))
    made = []
    while model.ready(state):
        made += model.step([state])[0]
    assert [(c.pts, c.frame_ticks, c.frames, c.first_frame, c.revision) for c in made] == [
        (6000, 3000, 1, 0, 2),
        (9000, 3000, 1, 1, 2),
    ]
    assert made[0].data.shape == (1, 48, 64, 3)
    assert made[0].data.dtype == np.uint8
    assert made[0].data.flags.c_contiguous
    assert model.finish(state) == []
    description = model.describe(state.params)
    assert [port.name for port in description.inputs] == ["subject", "depth"]
    assert (description.chunk_frames, description.latency_frames, description.frame_shape) == (1, 1, (48, 64))


def test_a_subject_alone_streams_without_frames(model: EasyControl) -> None:
    state = start(model, conditions={"subject": 1.0})
    first, second = (model.step([state])[0][0] for _ in range(2))
    assert (second.pts, second.frame_ticks, second.first_frame) == (5625, 5625, 1)
    assert not np.array_equal(first.data, second.data)
    still = start(model, conditions={"subject": 1.0}, same_noise=True)
    first, second = (model.step([still])[0][0] for _ in range(2))
    assert np.array_equal(first.data, second.data)


def test_every_condition_counts_and_none_is_needed(model: EasyControl) -> None:
    """Without a condition it is FLUX itself."""
    choices = ({}, {"subject": 1.0}, {"depth": 1.0}, {"depth": 0.5}, {"subject": 1.0, "depth": 1.0})
    images = [run(model, start(model, conditions=choice), 1)[0] for choice in choices]
    assert all(not np.array_equal(a, b) for i, a in enumerate(images) for b in images[:i])


def test_memory_is_flat_and_as_described(model: EasyControl) -> None:
    state = start(model)
    run(model, state, 2)
    held = state.nbytes
    run(model, state, 20)
    description = model.describe(state.params)
    assert state.nbytes == held < description.retained_bytes < description.peak_bytes
    assert len(state.entries) == 1
    entry = 2 * 4 * 4 * 24 * 4  # keys and values, layers, tokens, dim, bytes
    assert state.entries["subject"].entry.nbytes == entry
    state = start(model, conditions={"subject": 1.0})
    assert model.describe(state.params).retained_bytes == entry + 6 * 10 * 4 + 3 * 32 * 32


def test_restored_stream_is_bit_equal(model: EasyControl) -> None:
    state = start(model)
    run(model, state, 3)
    model.push(state, chunk("depth", 7, frames=2))
    snapshot = as_stored(state.snapshot())
    twin = model.restore(state.params, snapshot)
    for poisoned in snapshot.tensors.values():
        poisoned.fill(99)  # the restored state must own its memory
    for keys in state.entries["subject"].entry.k:
        keys.fill_(99)  # not what the twin may go on from
    state.entries.clear()
    other = model.restore(state.params, as_stored(twin.snapshot()))
    assert [w.pts for w in twin.waiting["depth"]] == [0, 3000]
    for step in range(5):
        made = []
        for one in (twin, other):
            if step == 3:
                model.control(one, prompt(2, 4))
            model.push(one, chunk("depth", 40 + step))
            made.append(model.step([one])[0][0])
        assert np.array_equal(made[0].data, made[1].data)
        assert made[0].revision == made[1].revision == (4 if step >= 3 else 0)


def test_a_restored_stream_goes_on_as_the_first_would(model: EasyControl) -> None:
    state = start(model)
    run(model, state, 2)
    model.control(state, prompt(3, 8))  # waits, and is in the snapshot
    twin = model.restore(state.params, as_stored(state.snapshot()))
    kept = state.entries
    state.entries = {}  # the twin must build its own
    expected = run(model, twin, 3)
    state.entries = kept
    twin.entries.clear()
    assert all(np.array_equal(a, b) for a, b in zip(run(model, state, 3), expected, strict=True))


def test_a_snapshot_holds_keys_and_no_entries(model: EasyControl) -> None:
    state = start(model)
    run(model, state, 1)
    snapshot = state.snapshot()
    assert snapshot.meta["keys"] == {"subject": state.entries["subject"].key}
    assert sorted(snapshot.tensors) == ["embedding", "subject/subject"]


def test_snapshots_that_do_not_fit_are_corrupt(model: EasyControl, folder: Path) -> None:
    state = start(model)
    run(model, state, 1)
    snapshot = state.snapshot()
    for params in ({"guidance": 4.0}, {"conditions": {"subject": 0.5, "depth": 1.0}}):
        with pytest.raises(Corrupt, match="'subject' would be built from another LoRA or other parameters"):
            model.restore(dataclasses.replace(state.params, **params), snapshot)  # type: ignore[arg-type]
    other = load(folder, subjects={"subject": str(folder / "depth.safetensors")})
    with pytest.raises(Corrupt, match="another LoRA"):
        other.restore(state.params, snapshot)
    for port in ("subject", "depth"):
        with pytest.raises(Corrupt, match=rf"of conditions \['depth', 'subject'\], this is of \['{port}'\]"):
            model.restore(dataclasses.replace(state.params, conditions={port: 1.0}), snapshot)
    with pytest.raises(Corrupt, match="the snapshot lacks 'subject/subject'"):
        model.restore(state.params, dataclasses.replace(snapshot, tensors={"embedding": snapshot.tensors["embedding"]}))


def test_entries_are_kept_shared_and_rebuilt(model: EasyControl, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    real = easycontrol.condition_entry
    monkeypatch.setattr(easycontrol, "condition_entry", lambda *args: built.append(1) or real(*args))
    state = start(model, conditions={"subject": 1.0})
    run(model, state, 3)
    assert len(built) == 1, "seed and timestep change, the entry stays"
    model.control(state, prompt(9, pooled=1))
    before = state.entries["subject"]
    run(model, state, 1)
    assert len(built) == 1, "other tokens, the same pooled prompt"
    model.control(state, prompt(9))
    run(model, state, 1)
    assert len(built) == 2
    assert state.entries["subject"].key != before.key

    def sharing(number: int, **params: object) -> int:
        other = start(model, number, seed=77, **params)
        run(model, other, 1)
        return len(built)

    same = start(model, conditions={"subject": 1.0})
    run(model, same, 1)
    count = len(built)
    assert sharing(1, conditions={"subject": 1.0}, height=64) == count, "a subject does not depend on the size"
    assert sharing(1, conditions={"subject": 1.0}, guidance=2.0) == count + 1
    assert sharing(1, conditions={"subject": 0.5}) == count + 2
    assert sharing(2, conditions={"subject": 1.0}) == count + 3
    assert sharing(1) == count + 4, "the subject's entry combines with another condition's"


def test_a_spatial_entry_depends_on_the_size_and_lives_for_one_image(model: EasyControl) -> None:
    state = start(model, conditions={"depth": 1.0})
    run(model, state, 1)
    assert state.entries == {}
    assert len(model._shared) == 0
    condition, image = model.conditions["depth"], fit("spatial", picture(1)[0], 32)
    keys = set()
    for params in ({}, {"height": 64}, {"width": 48}):
        other = start(model, **params)
        keys.add(model._key(other, condition, image, torch.zeros(4, 10)))
    assert len(keys) == 3


def test_a_batch_equals_single_sessions(model: EasyControl, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other prompts, seeds, guidance, strengths and conditions in one step."""
    wanted = ({}, {"guidance": 2.0}, {"conditions": {"depth": 0.7}}, {"conditions": {}})
    latents = []
    real = model.vae.decode
    monkeypatch.setattr(model.vae, "decode", lambda z: latents.append(z) or real(z))

    def sessions() -> list[EasyControlState]:
        made = [start(model, i, seed=i, **params) for i, params in enumerate(wanted)]
        for i, state in enumerate(made):
            run(model, state, i)
            for port in state.waiting:
                model.push(state, chunk(port, 7))
        latents.clear()
        return made

    expected = [model.step([state])[0][0].data for state in sessions()]
    alone = list(latents)
    together = sessions()
    assert len({model.batch_key(state) for state in together}) == 1
    for want, chunks in zip(expected, model.step(together), strict=True):
        assert np.abs(want.astype(int) - chunks[0].data).max() <= 1
    torch.testing.assert_close(torch.cat(latents), torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_sessions_of_other_sizes_or_prompt_lengths_do_not_share_a_step(model: EasyControl) -> None:
    state, tall = start(model), start(model, height=64)
    assert model.batch_key(state) != model.batch_key(tall)
    longer = start(model)
    model.control(longer, prompt(1, tokens=4))
    assert model.batch_key(state) != model.batch_key(longer)


def test_half_precision_and_params_from_outside(folder: Path) -> None:
    """As the service hands them over: plain JSON values."""
    model = load(folder, dtype="bfloat16")
    state = model.open(parse_params(EasyControlParams, {"prompt": "x", "conditions": {"depth": 1}, "height": 32.0}), 3)
    model.control(state, prompt(1))
    assert run(model, state, 2)[1].shape == (1, 32, 64, 3)
    twin = model.restore(state.params, as_stored(state.snapshot()))
    assert np.array_equal(run(model, state, 1)[0], run(model, twin, 1)[0])


def test_a_file_for_two_conditions_is_named_twice(folder: Path) -> None:
    pair = str(folder / "pair.safetensors")
    model = load(folder, subjects={}, spatials={"depth": pair, "edges": pair})
    images = []
    for port in ("depth", "edges"):
        state = start(model, conditions={port: 1.0})
        model.push(state, chunk(port, 3))
        images.append(model.step([state])[0][0].data)
    assert not np.array_equal(*images)
    with pytest.raises(BadRequest, match="trained on 2 conditions, 'pose' is one too many"):
        load(folder, subjects={}, spatials={"depth": pair, "edges": pair, "pose": pair})


def test_conditions_see_themselves_alone_and_the_image_sees_all(model: EasyControl) -> None:
    """The rule of the paper as one mask over one sequence, in the first layer, against joined entries."""
    torch.manual_seed(1)
    sizes = {"text": 3, "noise": 6, "first": 4, "second": 4}
    total = sum(sizes.values())
    owner = torch.repeat_interleave(torch.arange(4), torch.tensor(list(sizes.values())))
    mask = (owner[None] == owner[:, None]) | (owner[:, None] < 2)
    ids = torch.cat([torch.zeros(3, 3), image_ids(32, 48), *(condition_ids("spatial", 32, 32, 48),) * 2])
    turn = turn_of(ids, FLUX.axes_dims_rope)
    q, k, v = (torch.randn(1, total, 2, 12) for _ in range(3))
    whole = attention(rotate(q, turn), rotate(k, turn), v, mask=mask)
    entries = []
    for part in (slice(9, 13), slice(13, 17)):
        memory = AloneMemory(turn_of(ids[part], FLUX.axes_dims_rope))
        torch.testing.assert_close(memory.attend(0, q[:, part], k[:, part], v[:, part]), whole[:, part])
        entries.append(ConditionEntry(tuple(memory.k), tuple(memory.v)))
    joint = joint_memory(model.model, 3, ids[3:9], [entries]).attend(0, q[:, :9], k[:, :9], v[:, :9])
    torch.testing.assert_close(joint, whole[:, :9])


def test_pictures_are_fitted() -> None:
    wide = picture(1, height=30, width=90)[0]
    assert fit("spatial", wide, 32).shape == (32, 32, 3)
    subject = fit("subject", wide, 64)
    assert subject.shape == (16, 64, 3)
    padded = pixels(subject, 64)
    assert padded.shape == (1, 3, 64, 64)
    assert not padded[:, :, :24].any()
    assert not padded[:, :, 40:].any()
    assert padded[:, :, 24:40].abs().max() <= 1
    with pytest.raises(BadRequest, match="30 x 90 is too narrow for a subject of 32 pixels"):
        fit("subject", wide, 32)


def test_released_sizes() -> None:
    """Counted from the shapes: FLUX.1-dev's 11.9 B values, the VAE's 84 M, a LoRA file's 149 M at rank 128."""
    with torch.device("meta"):
        modules = (FluxTransformer(FLUX_DEV), FluxVAE(FLUX_VAE), ConditionLoRAs(FLUX_DEV, 128, 1))
    counts = [sum(t.numel() for t in module.state_dict().values()) for module in modules]
    assert counts == [11_901_408_320, 83_819_683, 149_422_080]
    assert [len(module.state_dict()) for module in modules] == [1160, 244, 380]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"height": 40}, "multiples of 16, got 40 x 64"),
        ({"width": -16}, "multiples of 16"),
        ({"height": 1600, "width": 1600}, "at most 4096 pixels"),
        ({"conditions": {"pose": 1.0}}, "there is no condition 'pose'; there are subject, depth"),
        ({"conditions": ["depth"]}, "conditions must name ports and their strengths"),
        ({"conditions": {"depth": "much"}}, "the strength of condition 'depth' must be a number, got 'much'"),
        ({"guidance": -1.0}, "guidance must not be negative"),
    ],
)
def test_wrong_params(model: EasyControl, params: dict, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        model.open(EasyControlParams("x", **params), 0)


def test_wrong_inputs(model: EasyControl) -> None:
    state = start(model)
    with pytest.raises(BadRequest, match="no condition 'pose' here; there are subject, depth"):
        model.push(state, chunk("pose", 1))
    with pytest.raises(BadRequest, match="one picture for the whole stream"):
        model.push(state, chunk("subject", 2))
    with pytest.raises(BadRequest, match=r"takes uint8 \[T, H, W, 3\], got float32 \[1, 8, 8, 3\]"):
        model.push(state, Chunk("depth", np.zeros((1, 8, 8, 3), np.float32), 0, 1, 1))
    with pytest.raises(BadRequest, match="takes prompts, got a control of kind 'camera'"):
        model.control(state, Control(1, "camera", 1.0))
    with pytest.raises(BadRequest, match=r"must be \[2..6, 10\], got \(5, 9\)"):
        model.control(state, Control(1, "prompt", "x", np.zeros((5, 9), np.float32)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cond_size": 40}, "cond_size must be a multiple of 16, got 40"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"fps": 0}, "fps must be 1..90000"),
        ({"stepps": 1}, "unknown parameter 'stepps'"),
        ({"spatials": {"subject": "x"}}, "'subject' is named both as a subject and as spatial"),
        ({"weights": "no/such/file.safetensors"}, "no such file or folder"),
    ],
)
def test_wrong_options(folder: Path, options: dict, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        load(folder, **options)


def test_wrong_files(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="holds no condition LoRAs"):
        load(folder, spatials={"depth": str(folder / "vae.safetensors")})
    (tmp_path / "other.json").write_text(json.dumps(dataclasses.asdict(VAE) | {"latent_channels": 8}))
    with pytest.raises(BadRequest, match="takes 4 latent channels at 8 pixels a latent, the VAE has 8 at 8"):
        load(folder, vae_config=str(tmp_path / "other.json"))
    (tmp_path / "short.json").write_text("{}")
    with pytest.raises(BadRequest, match="the transformer's config lacks 'in_channels'"):
        load(folder, weights_config=str(tmp_path / "short.json"))
    with pytest.raises(BadRequest, match="must add up to a head's 12"):
        dataclasses.replace(FLUX, axes_dims_rope=(4, 4))
