"""A model that does whatever is asked of it wrongly, its graphs, and a neighbour that notices what it is not spared."""

import threading
from pathlib import Path

import grpc
import numpy as np

from riverrun.models.synthetic import source_frame
from riverrun.protos import riverrun_pb2 as pb
from riverrun.protos.wire import Joiner

WAIT_S = 60

MODEL = '''
from dataclasses import dataclass

import numpy as np
from riverrun.models.base import BadRequest, Chunk, Description, Kind, Port, Snapshot, StreamModel


@dataclass(frozen=True)
class Params:
    how: str = ""
    takes: bool = False


@dataclass
class State:
    params: Params
    steps: int = 0
    waiting: int = 0
    nbytes: int = 0

    def mark(self):
        return self.steps, self.waiting

    def rewind(self, mark):
        self.steps, self.waiting = mark


class Wrong(StreamModel):
    """Frames [2, 4, 4, 3] and their depth; from its third step on, what `how` says."""

    Params = Params

    def describe(self, params):
        inputs = (Port("depth", Kind.DEPTH),) if params.takes else ()
        outputs = (Port("frames", Kind.FRAMES), Port("depth", Kind.DEPTH))
        return Description(inputs, outputs, chunk_frames=2, fps=10, frame_shape=(4, 4))

    def open(self, params, seed):
        return State(params)

    def push(self, state, chunk):
        if chunk.data.max() > 100:
            raise BadRequest("depth must be at most 100 m")
        state.waiting += 1

    def ready(self, state):
        return not state.params.takes or state.waiting > 0

    def batch_key(self, state):
        return "together"

    def step(self, states):
        made = [self.make(state) for state in states]
        return made[:-1] if any(s.params.how == "results" and s.steps > 2 for s in states) else made

    def make(self, state):
        how, start = state.params.how if state.steps >= 2 else "", state.steps * 2 * 9000
        state.steps += 1
        state.waiting -= state.params.takes
        if how == "raise":
            raise RuntimeError("the model gave up\\nfor good")
        frames, depth = np.full((2, 4, 4, 3), state.steps, np.uint8), np.ones((2, 4, 4), np.float32)
        frames = {"shape": frames[..., 0], "dtype": frames.astype(np.float32), "short": frames[:1]}.get(how, frames)
        port = "film" if how == "port" else "frames"
        if how == "nothing":
            return None
        chunks = [Chunk(port, frames, start, 9000, 2), Chunk("depth", depth, start, 9000, 2)]
        return chunks + chunks[:1] if how == "many" else chunks

    def restore(self, params, snapshot):
        raise NotImplementedError
'''
WEIGHTS = """
from riverrun.models.weights import load_strict, read
from torch import nn
from wrong.mod import Wrong


class Weighed(Wrong):
    def __init__(self, file):
        load_strict(nn.Linear(4, 4), read(file))
"""
YAML = "name: {name}\nclass: {path}\nstage: generation\nactor: {{eager: false}}\n"
GRAPHS = {
    "wrong": "stages: {make: {model: wrong}}\noutputs: {frames: make.frames, depth: make.depth}\n",
    "measure": "stages: {make: {model: wrong}}\ninputs: {depth: make.depth}\noutputs: {frames: make.frames}\n",
    "mistyped": "stages: {make: {model: wrong}, turn: {model: synthetic}}\n"
    "edges: [{from: make.depth, to: turn.frames}]\noutputs: {frames: turn.frames}\n",
    "weighed": "stages: {make: {model: weighed}}\noutputs: {frames: make.frames}\n",
}


def wrong_models(folder: Path) -> tuple[list[str], list[str]]:
    """Writes them; paths of the models and of the graphs."""
    (folder / "wrong").mkdir()
    (folder / "wrong" / "mod.py").write_text(MODEL)
    (folder / "wrong" / "weights.py").write_text(WEIGHTS)
    (folder / "wrong.yaml").write_text(YAML.format(name="wrong", path="wrong.mod:Wrong"))
    weighed = YAML.format(name="weighed", path="wrong.weights:Weighed")
    (folder / "weighed.yaml").write_text(f"{weighed}args: {{file: {folder}/weights.safetensors}}\n")
    for name, text in GRAPHS.items():
        (folder / f"{name}-graph.yaml").write_text(f"name: {name}\n{text}")
    return [f"{folder}/{name}.yaml" for name in ("wrong", "weighed")], [f"{folder}/{n}-graph.yaml" for n in GRAPHS]


class Neighbour:
    """Another client's stream on the same service, read by a thread all the while: every frame in order, once, and
    with the pixels that its seed and number say."""

    SEED, PROMPT = 77, "neighbour"

    def __init__(self, stubs) -> None:
        self.session = stubs.create(
            params={"prompt": self.PROMPT, "step_ms": 40, "chunk_frames": 2, "height": 8, "width": 8}, seed=self.SEED
        )
        self.count = 0
        self.error: grpc.RpcError | AssertionError | None = None
        self._stubs, self._news, self._left = stubs, threading.Condition(), False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def goes_on(self, frames: int = 3) -> None:
        """Returns when so many more frames have come, each as it should be."""
        with self._news:
            wanted = self.count + frames
            assert self._news.wait_for(lambda: self.error or self.count >= wanted, WAIT_S), "the neighbour stands still"
            assert self.error is None, self.error

    def leave(self) -> None:
        """Ends its session; nothing was wrong to the end."""
        self._left = True
        self._stubs.close(self.session.session_id)
        self._thread.join(WAIT_S)
        assert self.error is None, self.error

    def ended(self) -> tuple[str, str]:
        """How its stream was ended: code and line."""
        self._thread.join(WAIT_S)
        assert isinstance(self.error, grpc.RpcError), self.error
        return self.error.code().name, self.error.details()

    def _read(self) -> None:
        joiner = Joiner()
        try:
            for message in self._stubs.streams.Connect(self._says(), timeout=10 * WAIT_S):
                if message.WhichOneof("message") == "frame":
                    self._check(joiner.add(message.frame))
                elif message.WhichOneof("message") == "event" and not self._left:
                    with self._news:
                        self._left = True
                        self._news.notify_all()
        except (grpc.RpcError, AssertionError) as error:
            with self._news:
                self.error = error
                self._news.notify_all()

    def _says(self):
        ports = [pb.PortWish(port="frames", credits=16)]
        session, token = self.session.session_id, self.session.resume_token
        yield pb.ClientMessage(
            open=pb.Open(session_id=session, role=pb.ROLE_CONTROLLER, resume_token=token, ports=ports)
        )
        given = 0
        while not self._left:
            with self._news:
                self._news.wait_for(lambda: self.count > given or self._left or self.error, WAIT_S)  # noqa: B023
                given, more = self.count, self.count - given
            if more:
                yield pb.ClientMessage(credit=pb.Credit(port="frames", frames=more))

    def _check(self, joined) -> None:
        number = joined.header.frame
        assert number == self.count, f"frame {number} came where {self.count} was due"
        due = source_frame(self.SEED, self.PROMPT, number // 2, number, 8, 8)
        assert np.array_equal(joined.array, due), f"frame {number} has wrong pixels"
        with self._news:
            self.count += 1
            self._news.notify_all()
