"""`generate-upscale`, and chains like it: typed ports, what passes the gateway, order, times, switches, stalls."""

import threading

import grpc
import numpy as np
import pytest
import ray

from riverrun.actors.handles import RayStageHandle
from riverrun.models.synthetic import colour
from riverrun.protos import riverrun_pb2 as pb

from .conftest import Stubs, client_of, eventually, serving

SEED = 7
MIB = 1 << 20
CHAINS = {
    "made-upscaled": "stages: {make: {model: synthetic}, vsr: {model: infvsr-world}}\n"
    "edges: [{from: make.frames, to: vsr.frames}]\noutputs: {frames: vsr.frames}\n",
    "made-and-upscaled": "stages: {make: {model: synthetic}, vsr: {model: infvsr-world}}\n"
    "edges: [{from: make.frames, to: vsr.frames}]\noutputs: {frames: vsr.frames, before: make.frames}\n",
    "upscaled-told": "stages: {vsr: {model: infvsr-world}, gen: {model: teller}}\n"
    "edges: [{from: vsr.frames, to: gen.words}]\ninputs: {frames: vsr.frames}\noutputs: {frames: gen.frames}\n",
    "chain": "stages: {make: {model: synthetic}, turn: {model: synthetic}}\n"
    "edges: [{from: make.frames, to: turn.frames}]\noutputs: {frames: turn.frames}\n",
}
TELLER = """
from riverrun.models.base import Description, Kind, Port
from riverrun.models.synthetic import Synthetic


class Teller(Synthetic):
    def describe(self, params):
        return Description((Port("words", Kind.TEXT),), (Port("frames", Kind.FRAMES),), chunk_frames=1, fps=10)
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chains")
    for name, text in CHAINS.items():
        (folder / f"{name}.yaml").write_text(f"name: {name}\n{text}")
    (folder / "telling.py").write_text(TELLER)
    (folder / "teller.yaml").write_text("name: teller\nclass: telling:Teller\nstage: generation\n")
    graphs = ",".join(f"{folder}/{name}.yaml" for name in CHAINS)
    models = f"models=[synthetic,infvsr-world,world-text,longlive-world,{folder}/teller.yaml]"
    with serving(models, f"graphs=[{graphs}]") as running:
        yield running


@pytest.fixture(scope="module")
def rr(service):
    with client_of(service, "infvsr-world", "longlive-world", "teller") as client:
        yield client


@pytest.fixture(scope="module")
def stubs(service, rr):
    with grpc.insecure_channel(service.service.address) as channel:
        yield Stubs(channel)


@pytest.fixture
def passing(monkeypatch):
    """Bytes of each stage's chunks that came to the gateway: with its replies, and fetched for a client."""
    seen: dict[str, int] = {}
    lock = threading.Lock()
    step, fetch = RayStageHandle.step, RayStageHandle.fetch

    def count(stage, data):
        if isinstance(data, np.ndarray):
            with lock:
                seen[stage] = seen.get(stage, 0) + data.nbytes

    async def counted_step(self, request):
        reply = await step(self, request)
        for chunk in reply.chunks:
            count(self._stage, chunk.data)
        return reply

    async def counted_fetch(self, data):
        array = await fetch(self, data)
        if isinstance(data, ray.ObjectRef):
            count(self._stage, array)
        return array

    monkeypatch.setattr(RayStageHandle, "step", counted_step)
    monkeypatch.setattr(RayStageHandle, "fetch", counted_fetch)
    return seen


def test_ports_of_two_kinds_are_refused_when_the_session_is_asked_for(stubs, code):
    said = code(lambda: stubs.create(graph="upscaled-told"))
    line = "edge vsr.frames -> gen.words joins frames to text; both ends must be of one kind"
    assert said == ("INVALID_ARGUMENT", line)


def test_a_generator_s_frames_are_upscaled_in_order_with_their_times_and_a_switch_begins_a_scene(rr):
    frames, switched = [], None
    prompt, about = "a large red ball on grass by day", {"find_scenes": False}  # it has less in hand then
    with rr.stream("generate-upscale", prompt=prompt, seed=1, frames=75, **about) as stream:
        for frame in stream:
            frames.append(frame)
            if frame.number == 0:
                switched = stream.prompt("a large blue cube on snow at sunset")
    assert [frame.number for frame in frames] == list(range(75))
    assert [frame.seconds for frame in frames] == pytest.approx([n / 16 for n in range(75)])
    assert {frame.array.shape for frame in frames} == {(256, 256, 3)}
    revisions = [frame.revision for frame in frames]
    assert revisions == sorted(revisions)
    assert set(revisions) == {0, 1}
    first = next(frame for frame in frames if frame.revision == 1)
    assert switched.receipt.revision == 1
    before = next(frame for frame in frames if frame.number == first.number - 1)
    assert before.chunk < first.chunk  # no chunk lies across the switch
    lengths = [sum(frame.chunk == n for frame in frames) for n in range(first.chunk, frames[-1].chunk)]
    assert lengths[:1] == [9]  # as a scene begins


LARGE = {"make.height": 180, "make.width": 320, "make.chunk_frames": 12, "vsr.height": 180, "vsr.width": 320}


def test_large_chunks_go_from_stage_to_stage_past_the_gateway(rr, passing):
    """A chunk of the first stage has 2 MB, and nobody asked for it."""
    params = {**LARGE, "turn.height": 180, "turn.width": 320, "turn.takes": 12, "turn.chunk_frames": 12}
    params = {key: value for key, value in params.items() if not key.startswith("vsr")}
    with rr.stream("chain", **params, seed=SEED, frames=48) as stream:
        for frame in stream:
            assert (255 - frame.array[1, 1] == colour(SEED, "synthetic", frame.number // 12)).all()
    assert passing.get("make", 0) == 0
    assert passing["turn"] >= 48 * 180 * 320 * 3


def test_what_a_client_asked_for_passes(rr, passing):
    sizes = {"make.height": 180, "make.width": 320, "make.chunk_frames": 12}
    with rr.stream(
        "made-and-upscaled", **sizes, **{"vsr.height": 180, "vsr.width": 320}, seed=SEED, ports=["before"], frames=24
    ) as stream:
        taken = [next(stream).port for _ in range(12)]
    assert set(taken) == {"before"}
    assert passing["make"] >= 12 * 180 * 320 * 3


def test_a_slow_stage_stalls_the_one_before_and_little_lies_between_them(rr, stubs):
    """Each of its steps takes a chunk, half a second; the first stage could make thousands meanwhile."""
    params = {"make.chunk_frames": 2, "turn.takes": 2, "turn.chunk_frames": 2, "turn.step_ms": 300}
    with rr.stream("chain", **params, seed=SEED) as stream:
        taken = [next(stream).number for _ in range(12)]
        stages = {stage.stage: stage for stage in stubs.get(stream.session_id).stages}
        assert taken == list(range(12))
        assert stages["make"].steps - stages["turn"].steps <= 4
        assert stages["turn"].queued <= 2


def test_a_session_that_is_flushed_in_mid_chunk_loses_no_frame(rr):
    sizes = {"make.height": 12, "make.width": 16, "vsr.height": 12, "vsr.width": 16, "make.chunk_frames": 5}
    with rr.stream("made-upscaled", **sizes, seed=SEED) as stream:
        first = next(stream)
        stream.finish()
        rest = [frame.number for frame in stream]
    assert first.number == 0
    assert rest == list(range(1, len(rest) + 1))
    assert (len(rest) + 1) % 5 == 0  # all that the first stage had made


def test_nothing_is_left(stubs):
    busy = eventually(lambda: [a.sessions for a in stubs.status().actors if a.up])
    assert set(busy) == {0}
    assert pb.SESSION_STATE_RUNNING not in {s.state for s in stubs.sessions.List(pb.ListSessionsRequest()).sessions}
