"""What the gateway says of sessions, models and graphs, as protobuf. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from google.protobuf import duration_pb2, timestamp_pb2

from riverrun.actors.decisions import Decision
from riverrun.actors.host import Hosted
from riverrun.actors.member import MemberHealth
from riverrun.configs import ModelConfig
from riverrun.graphs.graph import Graph
from riverrun.graphs.items import Event, EventType, InputAck, Receipt, ReceiptStage
from riverrun.graphs.status import OutputStatus, RunnerStatus, output_status
from riverrun.models.base import ModelInfo
from riverrun.protos import riverrun_pb2 as pb
from riverrun.store.records import SessionRecord

_EVENTS = {
    EventType.ENDED: pb.Event.TYPE_ENDED,
    EventType.PAUSED: pb.Event.TYPE_PAUSED,
    EventType.RESUMED: pb.Event.TYPE_RESUMED,
    EventType.REPLACED: pb.Event.TYPE_REPLACED,
    EventType.RECOVERING: pb.Event.TYPE_RECOVERING,
    EventType.RECOVERED: pb.Event.TYPE_RECOVERED,
    EventType.MOVED: pb.Event.TYPE_MOVED,
    EventType.SUSPENDED: pb.Event.TYPE_SUSPENDED,
}
_RECEIPTS = {
    ReceiptStage.RECEIVED: pb.Receipt.STAGE_RECEIVED,
    ReceiptStage.APPLIED: pb.Receipt.STAGE_APPLIED,
    ReceiptStage.REJECTED: pb.Receipt.STAGE_REJECTED,
}


def timestamp(seconds: float) -> timestamp_pb2.Timestamp:
    """Seconds since 1970."""
    stamp = timestamp_pb2.Timestamp()
    stamp.FromMicroseconds(int(seconds * 1_000_000))
    return stamp


def duration(seconds: float) -> duration_pb2.Duration:
    span = duration_pb2.Duration()
    span.FromMilliseconds(int(seconds * 1000))
    return span


def live_session(hosted: Hosted, gateways: Sequence[str] = (), with_token: bool = False) -> pb.Session:
    """A session that runs here. with_token: for its creator only."""
    status: RunnerStatus = hosted.runner.status()
    return pb.Session(
        session_id=status.session,
        graph=status.graph,
        state=_state(status.state.value),
        reason=status.reason,
        created=timestamp(status.created),
        stages=[
            pb.StageStatus(
                stage=s.stage,
                model=s.model,
                actor=s.actor,
                incarnation=s.incarnation,
                steps=s.steps,
                held_bytes=s.held_bytes,
                compute_ms_p50=s.compute_ms_p50,
                compute_ms_p99=s.compute_ms_p99,
                wait_ms_p50=s.wait_ms_p50,
                queued=s.queued,
                retained_bytes=s.retained_bytes,
            )
            for s in status.stages
        ],
        outputs=[output_port(o) for o in status.outputs],
        frames_delivered=status.frames_delivered,
        lead_s=status.lead_s,
        parked=status.parked,
        paused=status.paused,
        resume_token=hosted.token if with_token else "",
        gateways=gateways,
    )


def stored_session(record: SessionRecord) -> pb.Session:
    """A session of the past, or of another gateway."""
    return pb.Session(
        session_id=record.id,
        graph=record.graph,
        state=_state(record.state.value),
        reason=record.reason,
        created=timestamp(record.created),
        stages=[
            pb.StageStatus(
                stage=name, model=p.model, actor=p.actor, incarnation=p.incarnation, steps=record.steps.get(name, 0)
            )
            for name, p in record.placement.items()
        ],
        frames_delivered=sum(mark.sent for mark in record.ports.values()),
    )


def output_port(output: OutputStatus) -> pb.OutputPort:
    height, width = output.frame_shape or (0, 0)
    return pb.OutputPort(
        port=output.port,
        kind=output.kind.value,
        fps=output.fps,
        height=height,
        width=width,
        chunk_frames=output.chunk_frames,
        first_frames=output.first_frames,
    )


def server_message(item: Receipt | InputAck | Event) -> pb.ServerMessage:
    """Anything a consumer is given but frames."""
    if isinstance(item, Receipt):
        receipt = pb.Receipt(
            revision=item.revision,
            stage=_RECEIPTS[item.stage],
            chunk=item.chunk,
            frame=item.frame,
            message=item.message,
        )
        return pb.ServerMessage(receipt=receipt)
    if isinstance(item, InputAck):
        return pb.ServerMessage(input_ack=pb.InputAck(port=item.port, frame=item.frame))
    event = pb.Event(type=_EVENTS[item.type], reason=item.reason)
    if item.retry_s:
        event.retry_after.CopyFrom(duration(item.retry_s))
    return pb.ServerMessage(event=event)


def model(config: ModelConfig, info: ModelInfo | None) -> pb.Model:
    """info: None for a model that is not running; ports and parameters are left out then."""
    message = pb.Model(name=config.name, stage=config.stage, class_path=config.class_path, licence=config.licence)
    if info is not None:
        about = info.description
        message.params.extend(
            pb.Param(name=p.name, type=p.type, default=p.default or "", required=p.default is None) for p in info.params
        )
        message.inputs.extend(pb.PortSpec(port=p.name, kind=p.kind.value) for p in about.inputs)
        message.outputs.extend(pb.PortSpec(port=p.name, kind=p.kind.value) for p in about.outputs)
        message.controls.extend(about.controls)
        message.fps, message.retained_bytes = about.fps, about.retained_bytes
    return message


def graph(about: Graph, infos: Mapping[str, ModelInfo | None]) -> pb.Graph:
    """infos: by model name; outputs of models that are not running have a name only."""
    return pb.Graph(
        name=about.name,
        description=about.description,
        stages=[pb.GraphStage(stage=s.name, model=s.model) for s in about.stages],
        edges=[pb.GraphEdge(source=str(e.source), target=str(e.target)) for e in about.edges],
        outputs=[_graph_output(about, name, infos) for name in about.outputs],
    )


def actor(member: MemberHealth) -> pb.ActorStatus:
    message = pb.ActorStatus(actor=member.actor, model=member.model, incarnation=member.incarnation)
    if member.health:
        health = member.health
        message.node, message.pid = health.node, health.pid
        message.sessions, message.max_sessions = health.sessions, health.max_sessions
        message.held_bytes, message.steps = health.held_bytes, health.steps
        message.up, message.reserved_bytes = True, health.reserved_bytes
        message.step_ms_p50, message.step_ms_p99 = health.p50_ms, health.p99_ms
        message.step_age_s = health.running_s
    return message


def _graph_output(about: Graph, name: str, infos: Mapping[str, ModelInfo | None]) -> pb.OutputPort:
    at = about.outputs[name]
    info = infos.get(about.stage(at.stage).model)
    if info is None:
        return pb.OutputPort(port=name)
    return output_port(output_status(name, at, info.description))


def _state(name: str) -> str:
    return f"SESSION_STATE_{name.upper()}"


def decision(made: Decision) -> pb.Decision:
    return pb.Decision(
        at=timestamp(made.at), kind=made.kind, model=made.model, line=made.line, inputs=dict(made.inputs)
    )
