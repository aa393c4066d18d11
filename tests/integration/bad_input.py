"""What clients send that is wrong, by the words of docs/errors.md; each returns the code and the line it got."""

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import numpy as np
from PIL import Image

from riverrun.protos import riverrun_pb2 as pb
from riverrun.protos.wire import MAX_PART_BYTES, Header, split

from .conftest import DEADLINE_S, Stubs

Answer = tuple[str, str]
MIB = 1 << 20
SIZE = 8
TURN = {"takes": 1, "chunk_frames": 1, "height": SIZE, "width": SIZE}


def refused(call: Callable[[], Any]) -> Answer:
    try:
        call()
    except grpc.RpcError as error:
        return error.code().name, error.details()
    return "OK", ""


# ---- requests ----


def create(stubs: Stubs, **fields: Any) -> Answer:
    return refused(lambda: stubs.create(**fields))


def params(stubs: Stubs, **values: Any) -> Answer:
    return create(stubs, params=values)


def raw_create(stubs: Stubs, data: bytes) -> Answer:
    call = stubs.channel.unary_unary("/riverrun.v1.Sessions/Create")
    return refused(lambda: call(data, timeout=DEADLINE_S))


# ---- connections ----


def first_message(stubs: Stubs, *messages: pb.ClientMessage) -> Answer:
    return refused(lambda: list(stubs.streams.Connect(iter(messages), timeout=DEADLINE_S)))


def opening(stubs: Stubs, **fields: Any) -> Answer:
    """Another connection to a session that streams; it goes on, wrong or not."""
    session = stubs.create()
    try:
        answer = refused(stubs.connect(session, **fields).rest)
        _still_streams(stubs, session)
    finally:
        stubs.close(session.session_id)
    return answer


def wish(stubs: Stubs, *wishes: dict[str, Any]) -> Answer:
    return opening(stubs, ports=[pb.PortWish(**{"port": "frames", **each}) for each in wishes])


def said(stubs: Stubs, **message: Any) -> Answer:
    """A message on an open stream that ends the connection, and not the session."""
    session = stubs.create()
    try:
        stream = stubs.connect(session)
        stream.until("opened")
        stream.say(**message)
        answer = refused(stream.rest)
        _still_streams(stubs, session)
    finally:
        stubs.close(session.session_id)
    return answer


def raw_said(stubs: Stubs, *data: bytes) -> Answer:
    session = stubs.create()
    first = pb.Open(session_id=session.session_id, role=pb.ROLE_CONTROLLER, resume_token=session.resume_token)
    messages = [pb.ClientMessage(open=first).SerializeToString(), *data]
    try:
        call = stubs.channel.stream_stream("/riverrun.v1.Streams/Connect")
        answer = refused(lambda: list(call(iter(messages), timeout=DEADLINE_S)))
        _still_streams(stubs, session)
    finally:
        stubs.close(session.session_id)
    return answer


def control(stubs: Stubs, revision: int = 1, **kind: Any) -> Answer:
    """The receipt of a control that can't be taken; the connection and the stream go on."""
    session = stubs.create()
    stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=500)])
    try:
        stream.control(revision, **kind)
        receipt = stream.receipts(revision)[-1]
        assert len(stream.frames(2)) == 2
        stream.cancel()
    finally:
        stubs.close(session.session_id)
    return pb.Receipt.Stage.Name(receipt.stage).removeprefix("STAGE_"), receipt.message


def _still_streams(stubs: Stubs, session: pb.Session) -> None:
    stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=2)])
    assert [part.frame for part in stream.frames(2)] == [0, 1]
    stream.cancel()


# ---- frames that come in ----


@dataclass(frozen=True)
class Frames:
    """graph, params: of the session that takes them. right: a frame that it takes."""

    graph: str
    params: dict[str, Any]
    port: str
    right: np.ndarray


PICTURES = Frames("turn", TURN, "video", np.full((SIZE, SIZE, 3), 7, np.uint8))
DEPTHS = Frames("measure", {"takes": True}, "depth", np.ones((4, 4), np.float32))


def parts_of(array: np.ndarray, number: int = 0, pts: int | None = None, port: str = "video") -> list[pb.FramePart]:
    pts = number * 5625 if pts is None else pts
    return split(array, Header(port, frame=number, chunk=0, index_in_chunk=0, pts=pts, epoch=0, revision=0))


def changed(**fields: Any) -> list[pb.FramePart]:
    """A right frame's one part with fields that are not."""
    (part,) = parts_of(PICTURES.right)
    shape = fields.pop("shape", None)
    for name, value in fields.items():
        setattr(part, name, value)
    if shape is not None:
        part.shape[:] = shape
    return [part]


def frames(stubs: Stubs, parts: Iterable[pb.FramePart], taken: int = 0, into: Frames = PICTURES, **then: Any) -> Answer:
    """Parts that end the connection; the session takes a right frame after them. taken: frames that count as sent."""
    session = stubs.create(graph=into.graph, params=into.params)
    try:
        stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=500)])
        for part in parts:
            stream.say(frame=part)
        if then:
            stream.say(**then)
        answer = refused(stream.rest)
        again = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=500)])
        for part in parts_of(into.right, taken, port=into.port):
            again.say(frame=part)
        while again.until("input_ack").frame < taken:
            pass
        again.until("frame")
        again.cancel()
    finally:
        stubs.close(session.session_id)
    return answer


def picture(kind: str = "JPEG", height: int = SIZE) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (height, SIZE, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


def damaged(data: bytes) -> bytes:
    return data[: len(data) // 2]


LARGE = np.zeros((3, MAX_PART_BYTES), np.uint8)
NAN = np.full((4, 4), np.nan, np.float32)
_PNG, _JPEG = pb.CODEC_PNG, pb.CODEC_JPEG
_UTF8 = b"\x0a\x02\xff\xfe"  # field 1, two bytes that are no UTF-8

CASES: dict[str, Callable[[Stubs], Answer]] = {
    # Sessions.Create
    "a graph that is not there": lambda s: create(s, graph="nope"),
    "a graph's name of 1 MB": lambda s: create(s, graph="x" * MIB),
    "an unknown parameter": lambda s: params(s, promt="x"),
    "an unknown parameter with a name of 50 kB": lambda s: params(s, **{"x" * 50_000: 1}),
    "a text where a number is due": lambda s: params(s, height="tall"),
    "a list where a number is due": lambda s: params(s, height=[8]),
    "half a number where a whole one is due": lambda s: params(s, height=8.5),
    "a number below its range": lambda s: params(s, height=-8),
    "a negative time": lambda s: params(s, step_ms=-1),
    "NaN as a parameter": lambda s: params(s, step_ms=float("nan")),
    "infinity as a parameter": lambda s: params(s, fps=float("inf")),
    "an empty prompt": lambda s: params(s, prompt=" \n "),
    "a prompt of 1 MB": lambda s: params(s, prompt="x" * MIB),
    "sizes that are too large together": lambda s: params(s, height=4096, width=4096, chunk_frames=9),
    "a session larger than the actor": lambda s: params(s, state_bytes=1e12),
    "a parameter that several stages have": lambda s: create(s, graph="chain", params={"height": 8}),
    "stages whose sizes don't fit": lambda s: create(s, graph="chain", params={"turn.takes": 1, "turn.height": 64}),
    "a graph that joins two kinds": lambda s: create(s, graph="mistyped", params={"turn.takes": 1}),
    "a client_id of 129 characters": lambda s: create(s, client_id="x" * 129),
    "a negative idle_timeout": lambda s: create(s, idle_timeout={"seconds": -1}),
    "text that is no UTF-8": lambda s: raw_create(s, _UTF8),
    "a message that ends too early": lambda s: raw_create(s, b"\x0a\x20abc"),
    "a message of 5 MB": lambda s: create(s, graph="x" * (5 * MIB)),
    # Streams.Connect: the opening
    "nothing at all": first_message,
    "another message before `open`": lambda s: first_message(s, pb.ClientMessage(ping=pb.Ping())),
    "a session that is not there": lambda s: first_message(
        s, pb.ClientMessage(open=pb.Open(session_id="nope", role=pb.ROLE_CONTROLLER))
    ),
    "no role": lambda s: opening(s, role=pb.ROLE_UNSPECIFIED),
    "a port that is not there": lambda s: wish(s, {"port": "depth"}),
    "a port twice": lambda s: wish(s, {}, {}),
    "an unknown codec": lambda s: wish(s, {"codec": 99}),
    "a JPEG quality of 101": lambda s: wish(s, {"codec": pb.CODEC_JPEG, "quality": 101}),
    "more credits than a port may have": lambda s: wish(s, {"credits": 2**32 - 1}),
    "a last_received that was never sent": lambda s: wish(s, {"last_received": 2**64 - 1}),
    # Streams.Connect: what follows
    "`open` again": lambda s: said(s, open=pb.Open()),
    "a message of no kind": said,
    "credit for a port that was not asked for": lambda s: said(s, credit=pb.Credit(port="depth", frames=1)),
    "an ack of a frame that was not sent": lambda s: said(s, ack=pb.Ack(port="frames", frame=2**63)),
    "a control that is no UTF-8": lambda s: raw_said(s, b"\x12\x06\x08\x01\x12\x02\xff\xfe"),
    "half a message": lambda s: raw_said(s, b"\x12\x20\x08\x01"),
    # controls: the connection goes on
    "a control of no kind": control,
    "revision 0": partial(control, revision=0, prompt="x"),
    "an empty prompt as a control": lambda s: control(s, prompt=" "),
    "a prompt of 1 MB as a control": lambda s: control(s, prompt="x" * MIB),
    "a control for a stage that is not there": lambda s: control(s, prompt="x", stage="nope"),
    "a parameter that can't change": lambda s: control(s, parameters={"height": 4}),
    "NaN in a control": lambda s: control(s, parameters={"step_ms": float("nan")}),
    "a negative number in a control": lambda s: control(s, parameters={"step_ms": -1}),
    # frames: the session goes on
    "a frame for an input that is not there": lambda s: frames(s, parts_of(PICTURES.right, port="film")),
    "a frame number too high": lambda s: frames(s, parts_of(PICTURES.right, 3)),
    "a frame of another size": lambda s: frames(s, parts_of(PICTURES.right[:4])),
    "a frame of another dtype": lambda s: frames(s, parts_of(PICTURES.right.astype(np.float32))),
    "a frame without colours": lambda s: frames(s, parts_of(PICTURES.right[..., 0])),
    "NaN in a frame": lambda s: frames(s, parts_of(NAN, port="depth"), into=DEPTHS),
    "a frame that the model refuses": lambda s: frames(
        s, parts_of(DEPTHS.right * 200, port="depth"), taken=1, into=DEPTHS
    ),
    "a negative media time": lambda s: frames(s, parts_of(PICTURES.right, pts=-1)),
    "a media time that falls": lambda s: frames(
        s, parts_of(PICTURES.right, pts=4000) + parts_of(PICTURES.right, 1, pts=4000), taken=1
    ),
    "a frame in an unknown codec": lambda s: frames(s, changed(codec=99)),
    "a frame of an unknown dtype": lambda s: frames(s, changed(dtype="object")),
    "noise as a JPEG": lambda s: frames(s, changed(codec=_JPEG, data=b"\xff\xd8" + bytes(range(256)))),
    "half a JPEG": lambda s: frames(s, changed(codec=_JPEG, data=damaged(picture()))),
    "half a PNG": lambda s: frames(s, changed(codec=_PNG, data=damaged(picture("PNG")))),
    "a JPEG of another size than its header": lambda s: frames(s, changed(codec=_JPEG, data=picture(height=16))),
    "fewer bytes than the shape has": lambda s: frames(s, changed(data=b"123")),
    "a shape of 100 axes": lambda s: frames(s, changed(shape=[1] * 100)),
    "a shape of 2^64 bytes": lambda s: frames(s, changed(shape=[2**32 - 1, 2**32 - 1, 3])),
    "an empty frame of 2^64 rows": lambda s: frames(s, changed(shape=[0, 2**32 - 1, 2**32 - 1])),
    "a frame in no parts": lambda s: frames(s, changed(parts=0)),
    "a part of more than 1 MiB": lambda s: frames(s, changed(data=bytes(MIB + 1))),
    "the second part first": lambda s: frames(s, parts_of(LARGE)[1:]),
    "another frame in the middle of one": lambda s: frames(s, parts_of(LARGE)[:1] + parts_of(LARGE, 1)[1:]),
    "`finish` in the middle of a frame": lambda s: frames(s, parts_of(LARGE)[:1], finish=pb.Finish()),
}
