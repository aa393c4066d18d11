"""What the clients of a chaos run stream: graphs over synthetic models, the shipped LongLive, and tiny models of the
table with random weights, fed by a source before them or by their client."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from riverrun.models.base import TICKS_PER_SECOND
from riverrun.models.synthetic import source_frame
from riverrun.models.text.strategies import STRATEGIES

from .checker import Got, sha
from .tiny import row

CHUNK_FRAMES, SIDE, FPS = 4, 32, 16.0
STATE_BYTES = 200_000
LEAD_S = 1.0
"""Media that may be ahead of a player: rows of the table are quick, and many of them share the machine."""

PROMPTS, TOKENS = 22, 400
"""A prompt is one token, answered by 20."""

PROMPT = "a large red ball on green grass at noon"


@dataclass(frozen=True)
class Inputs:
    """What a client feeds: rows' own inputs. row: of the table. ports: of the graph; most: frames of each. ticks: media
    time from one frame to the next."""

    row: str
    ports: tuple[str, ...]
    ticks: int
    most: int | None = None


@dataclass(frozen=True)
class Workload:
    """graph: YAML, without its name. frames: of one session; then the next begins. steered: its prompt changes all the
    time, so that its frames are checked against arithmetic and not against a run before. lead: see
    `AsyncClient.stream`."""

    name: str
    graph: Mapping[str, Any]
    frames: int
    seed: int = 0
    params: Mapping[str, Any] = field(default_factory=dict)
    steered: bool = False
    inputs: Inputs | None = None
    lead: float = 0.0

    @property
    def graph_name(self) -> str:
        """The same for the same graph."""
        edges = [f"{edge['from']}-{edge['to']}" for edge in self.graph.get("edges", ())]
        models = [f"{name}-{stage['model']}" for name, stage in self.graph["stages"].items()]
        return "_".join([*models, *edges, *self.graph.get("inputs", ())]).replace(".", "-")

    @property
    def models(self) -> set[str]:
        return {stage["model"] for stage in self.graph["stages"].values()}

    def undisturbed(self) -> Workload:
        """The same frames as fast as they can be made."""
        quick = {key: 0 if key.endswith("step_ms") else value for key, value in self.params.items()}
        return replace(self, params=quick, lead=0.0)

    def computed(self, got: Got) -> tuple[int, int, str]:
        """What a chain of synthetic stages must have made. Only for those."""
        prompt = prompt_of(got.revision)
        pixels = source_frame(self.seed, prompt, got.number // CHUNK_FRAMES, got.number, SIDE, SIDE)
        ticks = round(TICKS_PER_SECOND / FPS)
        return got.number * ticks, got.revision, sha(pixels if len(self.graph["stages"]) % 2 else 255 - pixels)


def prompt_of(revision: int) -> str:
    return f"prompt {revision}" if revision else "synthetic"


def synthetic(name: str, stages: int, frames: int, seed: int, step_ms: float, steered: bool = False) -> Workload:
    later = [f"s{n}" for n in range(1, stages)]
    params: dict[str, Any] = {"s0.step_ms": step_ms, "s0.state_bytes": STATE_BYTES}
    params |= {f"{n}.takes": CHUNK_FRAMES for n in later} | {f"{n}.state_bytes": STATE_BYTES for n in later}
    return Workload(name, chain(*["mortal"] * stages), frames, seed, params, steered)


def chain(*models: str, ports: tuple[str, ...] = ("frames",)) -> dict[str, Any]:
    """Stages s0, s1, … one after the other. ports: outputs of the last."""
    names = [f"s{n}" for n in range(len(models))]
    edges = [{"from": f"{a}.frames", "to": f"{b}.frames"} for a, b in itertools.pairwise(names)]
    stages = {name: {"model": model} for name, model in zip(names, models, strict=True)}
    return {"stages": stages, "edges": edges, "outputs": {port: f"{names[-1]}.{port}" for port in ports}}


def source(height: int, width: int) -> dict[str, Any]:
    """Parameters of a synthetic stage s0 before a model that takes frames of this size."""
    return {"s0.height": height, "s0.width": width, "s0.state_bytes": 1000}


def alone(model: str, ports: Iterable[str], inputs: Iterable[str] = ()) -> dict[str, Any]:
    """One stage, m."""
    outputs, takes = ({port: f"m.{port}" for port in each} for each in (ports, inputs))
    return {"stages": {"m": {"model": model}}, "inputs": takes, "outputs": outputs}


GEOMETRY = ("depth", "points", "camera", "confidence")
PACED = {"lead": LEAD_S}


def clip(model: str, name: str, seed: int) -> Workload:
    """Its client sends the first latents; then it goes on by itself."""
    inputs, params = Inputs(name, ("first",), TICKS_PER_SECOND // 8), row(name).params | {"prompt": "a fox"}
    return Workload(name, alone(model, ["latents"], ["first"]), 160, seed, params, inputs=inputs, **PACED)


def text(model: str, name: str, seed: int) -> Workload:
    inputs = Inputs(name, ("prompt",), 9000, PROMPTS)
    return Workload(name, alone(model, ["tokens"], ["prompt"]), TOKENS, seed, row(name).params, inputs=inputs, **PACED)


EASY = {"m.prompt": "a fox", "m.conditions": {"subject": 1.0, "depth": 1.0}}
SOURCED = alone("easycontrol", ["frames"], ["subject"]) | {
    "stages": {"s0": {"model": "mortal"}, "m": {"model": "easycontrol"}},
    "edges": [{"from": "s0.frames", "to": "m.depth"}],
}


def tables() -> list[Workload]:
    """Every row of the table of models that is not synthetic, and has no end."""
    small = row("InfiniteVGGT").params
    later = {f"s1.{name}": value for name, value in small.items()}
    frames = Inputs("InfVSR", ("frames",), 5625)
    views = Inputs("InfiniteVGGT", ("frames",), 9000)
    return [
        Workload("LongLive, random", alone("longlive-tiny", ["frames"]), 320, 21, {"prompt": PROMPT}, **PACED),
        clip("ca2vdm", "Ca2-VDM", 22),
        clip("ca2vdm-rope", "Ca2-VDM, rope", 23),
        clip("ca2vdm-partial", "Ca2-VDM, partial", 24),
        clip("ca2vdm-plain", "Ca2-VDM, no captions", 25),
        clip("vidgpt", "ViD-GPT, bounded", 26),
        Workload(
            "EasyControl, fed",
            alone("easycontrol", ["frames"], ["subject", "depth"]),
            200,
            27,
            EASY,
            inputs=Inputs("EasyControl", ("subject", "depth"), 9000),
            **PACED,
        ),
        Workload(
            "EasyControl after a source",
            SOURCED,
            320,
            28,
            EASY | source(40, 50),
            inputs=Inputs("EasyControl", ("subject",), 9000),
            **PACED,
        ),
        Workload("InfVSR, fed", alone("infvsr", ["frames"], ["frames"]), 360, 29, inputs=frames, **PACED),
        Workload("InfVSR after a source", chain("mortal", "infvsr"), 360, 30, source(8, 12), **PACED),
        Workload(
            "InfiniteVGGT, fed", alone("infinitevggt", GEOMETRY, ["frames"]), 120, 31, small, inputs=views, **PACED
        ),
        Workload(
            "InfiniteVGGT after a source",
            chain("mortal", "infinitevggt", ports=GEOMETRY),
            160,
            32,
            source(28, 42) | later,
            **PACED,
        ),
        *(text("lm", f"text {each}", 40 + n) for n, each in enumerate(STRATEGIES)),
        *(text("lm", f"text {each}, sampled", 50 + n) for n, each in enumerate(STRATEGIES) if each != "jacobi"),
        *(text("locret", f"Locret {each}", 60 + n) for n, each in enumerate(STRATEGIES)),
    ]


def made_up() -> list[Workload]:
    return [
        synthetic("source alone", 1, 1600, seed=11, step_ms=40),
        synthetic("source, steered", 1, 1600, seed=12, step_ms=40, steered=True),
        synthetic("chain of two", 2, 1600, seed=13, step_ms=40),
        synthetic("chain of two, steered", 2, 1200, seed=14, step_ms=40, steered=True),
        synthetic("chain of three", 3, 1600, seed=15, step_ms=40),
        shipped(480, lead=LEAD_S),
    ]


def short() -> list[Workload]:
    return [
        synthetic("source, steered", 1, 1600, seed=12, step_ms=40, steered=True),
        synthetic("chain of two", 2, 400, seed=13, step_ms=40),
        shipped(160),
    ]


def shipped(frames: int, lead: float = 0.0) -> Workload:
    return Workload(
        "tiny LongLive", alone("longlive-world", ["frames"]), frames, seed=16, params={"prompt": PROMPT}, lead=lead
    )


def picked(works: Iterable[Workload], names: str) -> list[Workload]:
    """Those whose names hold one of `names`, which are parted by semicolons."""
    return [work for work in works if any(name.strip() in work.name for name in names.split(";"))]
