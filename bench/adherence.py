"""Do the pictures show what the prompt asks for, also after it changes, and also after a thousand blocks?

`python -m riverrun.bench.adherence [--quick] [--json FILE]`

Runs the shipped generator with the model class the service runs, on captions whose combination of colour, shape and
floor was never trained on. (a) Share of streams where the asked-for colour has more than half of the object's pixels.
(b) The same for the new colour in the blocks after a prompt switch, with and without recomputing the cache. (c) Seven
endless streams with and without the sink.

An object's pixel is a saturated one; floors and skies of the tiny world are pale by design. Beside the model's figures
stand those of rendered truth under the same yardstick, and of chance: each picture judged by the other captions.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

import riverrun.weights
from riverrun.bench.report import table, write_json
from riverrun.kernels.histories import Histories
from riverrun.kernels.noise import normal
from riverrun.models.base import Control
from riverrun.models.generation.longlive import LongLive
from riverrun.models.generation.longlive_state import LongLiveParams, LongLiveState
from riverrun.models.text.umt5 import UMT5Encoder
from riverrun.train.captions import TEXT_LEN, caption
from riverrun.train.measure import count_colours, floor_and_sky, sharpness
from riverrun.train.scenes import OBJECT_COLOURS, Scene, dress, sample_scene
from riverrun.train.world import render

WEIGHTS = Path(riverrun.weights.__file__).parent
BATCH = 8
BLOCKS = 3  # of a stream before it is judged by its last block
BEFORE_SWITCH = 5


@dataclass(frozen=True)
class Plan:
    """captions: in (a) and (b). checkpoints: blocks at which (c) looks."""

    captions: int = 50
    checkpoints: tuple[int, ...] = (2, 10, 50, 100, 200, 500, 1000)


QUICK = Plan(captions=24, checkpoints=(2, 10, 40))


@dataclass(frozen=True)
class Shares:
    """Shares of streams: object colour, floor, sky as asked."""

    who: str
    colour: float
    floor: float
    sky: float
    chance: float


@dataclass(frozen=True)
class SwitchShares:
    """Share showing the new colour in the 1st, 2nd, 3rd block after the switch; the old one in the 3rd; new floor."""

    recache: bool
    first: float
    second: float
    third: float
    old_third: float
    floor_third: float


@dataclass(frozen=True)
class VAEQuality:
    """Mean PSNR in dB of clips through encoder and decoder: all pixels, and the object's alone."""

    psnr: float
    object_psnr: float


@dataclass(frozen=True)
class Horizon:
    """After ``block`` blocks: share of streams in their colour; mean sharpness (levels); std of the latents."""

    sink: bool
    block: int
    colour: float
    sharpness: float
    latent_std: float


class Rig:
    """The shipped generator and its prompt encoder, without a service around them."""

    def __init__(self, folder: Path = WEIGHTS):
        names = {name: str(folder / f"world-{name}") for name in ("dit", "vae", "text", "tokenizer")}
        self.model = LongLive(
            f"{names['dit']}.safetensors",
            f"{names['vae']}.safetensors",
            weights_config=f"{names['dit']}.json",
            vae_config=f"{names['vae']}.json",
            height=64,
            width=64,
        )
        self.encoder = UMT5Encoder(
            f"{names['text']}.safetensors", f"{names['tokenizer']}.json", text_len=TEXT_LEN, dtype="float32"
        )

    def open(self, scenes: Sequence[Scene], *, first_seed: int = 0, **params: bool) -> list[LongLiveState]:
        states = []
        for i, scene in enumerate(scenes):
            state = self.model.open(LongLiveParams(prompt=caption(scene), **params), seed=first_seed + i)
            states.append(state)
        self.prompt(states, scenes)
        return states

    def prompt(self, states: Sequence[LongLiveState], scenes: Sequence[Scene]) -> None:
        """A prompt for each stream, in force from its next block."""
        texts = [caption(scene) for scene in scenes]
        for state, text, embedding in zip(states, texts, self.encoder.encode(texts), strict=True):
            self.model.control(state, Control(state.revision + 1, "prompt", text, embedding))

    def block(self, states: Sequence[LongLiveState]) -> list[Tensor]:
        """The next frames of each stream, uint8 [T, H, W, 3]."""
        return [torch.from_numpy(chunks[0].data) for chunks in self.model.step(states)]

    @torch.no_grad()
    def blind_block(self, states: Sequence[LongLiveState]) -> Tensor:
        """The next latents [B, F, C, h, w] without decoding them (a long run is looked at now and then)."""

        def draw(index: int) -> Tensor:
            shape = (self.model.options.block, *states[0].stream.recent.shape[1:])
            return torch.stack([normal(shape, seed=s.seed, chunk=s.chunk, draw=index) for s in states])

        latents = self.model.sampler.block([state.stream for state in states], draw)
        for state in states:
            state.chunk += 1
        return latents

    def look(self, state: LongLiveState) -> Tensor:
        """The newest block of a blind run as frames, its window decoded from an empty history."""
        pixels = self.model.vae.decode(state.stream.recent[None, -self.model.options.window :], Histories())[0]
        block = self.model.options.block * self.model.vae.config.temporal_factor
        return _bytes(pixels[-block:])

    @torch.no_grad()
    def through_vae(self, frames: Tensor) -> Tensor:
        """uint8 [4n + 1, H, W, 3] encoded and decoded again."""
        latents = self.model.vae.encode_clip(frames.permute(0, 3, 1, 2)[None].float() / 127.5 - 1)
        return _bytes(self.model.vae.decode_clip(latents)[0].clamp(-1, 1))


def _bytes(pixels: Tensor) -> Tensor:
    """[T, 3, H, W] in [-1, 1] -> uint8 [T, H, W, 3]."""
    return ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


def held_out_scenes(count: int, seed: int = 2024) -> list[Scene]:
    """Scenes with distinct captions, none of them from the training split, all colours equally often."""
    rng = random.Random(seed)
    scenes: dict[str, Scene] = {}
    while len(scenes) < count:
        scene = sample_scene(rng, held_out=True)
        if scene.things[0].colour == list(OBJECT_COLOURS)[len(scenes) % len(OBJECT_COLOURS)]:
            scenes.setdefault(caption(scene), scene)
    return list(scenes.values())


def judge(who: str, scenes: Sequence[Scene], clips: Sequence[Tensor]) -> Shares:
    """One row of (a). Chance: the mean share over all wrong pairings of pictures and captions."""
    counts = [count_colours(clip) for clip in clips]
    grounds = [floor_and_sky(clip) for clip in clips]
    n = len(scenes)
    crossed = sum(counts[i].shows(scenes[j].things[0].colour) for i in range(n) for j in range(n) if i != j)
    return Shares(
        who,
        sum(count.shows(scene.things[0].colour) for count, scene in zip(counts, scenes, strict=True)) / n,
        sum(ground[0] == scene.floor for ground, scene in zip(grounds, scenes, strict=True)) / n,
        sum(ground[1] == scene.sky for ground, scene in zip(grounds, scenes, strict=True)) / n,
        crossed / (n * (n - 1)),
    )


def adherence(rig: Rig, plan: Plan) -> list[Shares]:
    """(a): the model, and rendered truth before and after the VAE."""
    scenes = held_out_scenes(plan.captions)
    clips: list[Tensor] = []
    for at in range(0, len(scenes), BATCH):
        states = rig.open(scenes[at : at + BATCH], first_seed=at)
        for _ in range(BLOCKS):
            frames = rig.block(states)
        clips += frames
    truth = [render(scene, range(20, 37)).frames for scene in scenes]
    return [
        judge("generator", scenes, clips),
        judge("rendered truth", scenes, [clip[5:] for clip in truth]),
        judge("truth through the VAE", scenes, [rig.through_vae(clip)[5:] for clip in truth]),
    ]


def psnr(rig: Rig, plan: Plan) -> VAEQuality:
    """The VAE alone: 17 frames of unseen scenes encoded and decoded."""
    whole, objects = [], []
    for scene in held_out_scenes(plan.captions):
        footage = render(scene, range(20, 37))
        squared = (rig.through_vae(footage.frames).float() - footage.frames.float()).square() / 255**2
        whole.append(-10 * squared.mean().log10().item())
        objects.append(-10 * squared[footage.objects > 0].mean().log10().item())
    return VAEQuality(sum(whole) / len(whole), sum(objects) / len(objects))


def switched(rig: Rig, plan: Plan, recache: bool) -> SwitchShares:
    """(b): from one held-out scene to another of a different colour."""
    rng = random.Random(77)
    scenes = held_out_scenes(plan.captions)
    goals = [_other(rng, scene) for scene in scenes]
    seen: list[list[Tensor]] = []
    for at in range(0, len(scenes), BATCH):
        states = rig.open(scenes[at : at + BATCH], first_seed=5000 + at, recache=recache)
        for _ in range(BEFORE_SWITCH):
            rig.block(states)
        rig.prompt(states, goals[at : at + BATCH])
        seen += [list(blocks) for blocks in zip(*(rig.block(states) for _ in range(3)), strict=True)]
    n = len(scenes)

    def share(block: int, wanted: Sequence[Scene]) -> float:
        pairs = zip(seen, wanted, strict=True)
        return sum(count_colours(blocks[block]).shows(scene.things[0].colour) for blocks, scene in pairs) / n

    floors = sum(floor_and_sky(blocks[2])[0] == goal.floor for blocks, goal in zip(seen, goals, strict=True)) / n
    first, second, third = (share(block, goals) for block in range(3))
    return SwitchShares(recache, first, second, third, share(2, scenes), floors)


def _other(rng: random.Random, scene: Scene) -> Scene:
    while True:
        goal = dress(rng, scene.camera, held_out=True)
        if goal.things[0].colour != scene.things[0].colour:
            return goal


@torch.no_grad()
def horizon(rig: Rig, plan: Plan, sink: bool) -> list[Horizon]:
    """(c): one stream a colour, from trained-on and held-out captions alike."""
    rng = random.Random(3)
    scenes: list[Scene] = []
    while len(scenes) < len(OBJECT_COLOURS):
        scene = sample_scene(rng)
        if scene.things[0].colour == list(OBJECT_COLOURS)[len(scenes)]:
            scenes.append(scene)
    states = rig.open(scenes, first_seed=9000, sink=sink)
    rig.block(states)  # puts the prompts in force
    rows = []
    for block in range(2, plan.checkpoints[-1] + 1):
        latents = rig.blind_block(states)
        if block in plan.checkpoints:
            clips = [rig.look(state) for state in states]
            shown = [count_colours(c).shows(s.things[0].colour) for c, s in zip(clips, scenes, strict=True)]
            mean_sharpness = sum(map(sharpness, clips)) / len(clips)
            rows.append(Horizon(sink, block, sum(shown) / len(shown), mean_sharpness, latents.std().item()))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer captions, 40 blocks instead of 1,000")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder with the world-* files")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    plan, rig = QUICK if args.quick else Plan(), Rig(args.weights)
    shares = adherence(rig, plan)
    print(f"(a) {plan.captions} held-out captions, block {BLOCKS}\n{_table(shares)}\n", flush=True)
    quality = psnr(rig, plan)
    print(f"the VAE on the same scenes: {quality.psnr:.1f} dB, objects {quality.object_psnr:.1f} dB\n", flush=True)
    switches = [switched(rig, plan, recache) for recache in (True, False)]
    print(f"(b) prompt switch after block {BEFORE_SWITCH}, blocks after it\n{_table(switches)}\n", flush=True)
    horizons = [row for sink in (True, False) for row in horizon(rig, plan, sink)]
    print(f"(c) {len(OBJECT_COLOURS)} endless streams\n{_table(horizons)}", flush=True)
    if args.json:
        figures = {
            "adherence": [asdict(row) for row in shares],
            "vae": asdict(quality),
            "switch": [asdict(row) for row in switches],
            "horizon": [asdict(row) for row in horizons],
        }
        write_json(args.json, "adherence", asdict(plan), figures)


def _table(rows: Sequence[Shares] | Sequence[SwitchShares] | Sequence[Horizon]) -> str:
    cells = [[round(v, 3) if isinstance(v, float) else v for v in asdict(row).values()] for row in rows]
    return table(list(asdict(rows[0])), cells)


if __name__ == "__main__":
    main()
