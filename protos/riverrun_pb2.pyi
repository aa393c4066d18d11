import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SessionState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SESSION_STATE_UNSPECIFIED: _ClassVar[SessionState]
    SESSION_STATE_OPENING: _ClassVar[SessionState]
    SESSION_STATE_RUNNING: _ClassVar[SessionState]
    SESSION_STATE_DRAINING: _ClassVar[SessionState]
    SESSION_STATE_CLOSED: _ClassVar[SessionState]
    SESSION_STATE_FAILED: _ClassVar[SessionState]
    SESSION_STATE_SUSPENDED: _ClassVar[SessionState]

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_CONTROLLER: _ClassVar[Role]
    ROLE_VIEWER: _ClassVar[Role]

class Codec(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CODEC_UNSPECIFIED: _ClassVar[Codec]
    CODEC_RAW: _ClassVar[Codec]
    CODEC_JPEG: _ClassVar[Codec]
    CODEC_PNG: _ClassVar[Codec]

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    JOB_STATE_RUNNING: _ClassVar[JobState]
    JOB_STATE_SUCCEEDED: _ClassVar[JobState]
    JOB_STATE_FAILED: _ClassVar[JobState]
    JOB_STATE_CANCELLED: _ClassVar[JobState]
SESSION_STATE_UNSPECIFIED: SessionState
SESSION_STATE_OPENING: SessionState
SESSION_STATE_RUNNING: SessionState
SESSION_STATE_DRAINING: SessionState
SESSION_STATE_CLOSED: SessionState
SESSION_STATE_FAILED: SessionState
SESSION_STATE_SUSPENDED: SessionState
ROLE_UNSPECIFIED: Role
ROLE_CONTROLLER: Role
ROLE_VIEWER: Role
CODEC_UNSPECIFIED: Codec
CODEC_RAW: Codec
CODEC_JPEG: Codec
CODEC_PNG: Codec
JOB_STATE_UNSPECIFIED: JobState
JOB_STATE_RUNNING: JobState
JOB_STATE_SUCCEEDED: JobState
JOB_STATE_FAILED: JobState
JOB_STATE_CANCELLED: JobState

class CreateSessionRequest(_message.Message):
    __slots__ = ("graph", "params", "client_id", "seed", "idle_timeout", "max_frames", "lead")
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    IDLE_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    MAX_FRAMES_FIELD_NUMBER: _ClassVar[int]
    LEAD_FIELD_NUMBER: _ClassVar[int]
    graph: str
    params: _struct_pb2.Struct
    client_id: str
    seed: int
    idle_timeout: _duration_pb2.Duration
    max_frames: int
    lead: _duration_pb2.Duration
    def __init__(self, graph: _Optional[str] = ..., params: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., client_id: _Optional[str] = ..., seed: _Optional[int] = ..., idle_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., max_frames: _Optional[int] = ..., lead: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Session(_message.Message):
    __slots__ = ("session_id", "graph", "state", "reason", "created", "stages", "outputs", "frames_delivered", "resume_token", "gateways", "lead_s", "parked", "paused")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    FRAMES_DELIVERED_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    GATEWAYS_FIELD_NUMBER: _ClassVar[int]
    LEAD_S_FIELD_NUMBER: _ClassVar[int]
    PARKED_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    graph: str
    state: SessionState
    reason: str
    created: _timestamp_pb2.Timestamp
    stages: _containers.RepeatedCompositeFieldContainer[StageStatus]
    outputs: _containers.RepeatedCompositeFieldContainer[OutputPort]
    frames_delivered: int
    resume_token: str
    gateways: _containers.RepeatedScalarFieldContainer[str]
    lead_s: float
    parked: bool
    paused: bool
    def __init__(self, session_id: _Optional[str] = ..., graph: _Optional[str] = ..., state: _Optional[_Union[SessionState, str]] = ..., reason: _Optional[str] = ..., created: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., stages: _Optional[_Iterable[_Union[StageStatus, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[OutputPort, _Mapping]]] = ..., frames_delivered: _Optional[int] = ..., resume_token: _Optional[str] = ..., gateways: _Optional[_Iterable[str]] = ..., lead_s: _Optional[float] = ..., parked: _Optional[bool] = ..., paused: _Optional[bool] = ...) -> None: ...

class StageStatus(_message.Message):
    __slots__ = ("stage", "model", "actor", "incarnation", "steps", "held_bytes", "compute_ms_p50", "compute_ms_p99", "wait_ms_p50", "queued", "retained_bytes")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    HELD_BYTES_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_MS_P50_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_MS_P99_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_P50_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    RETAINED_BYTES_FIELD_NUMBER: _ClassVar[int]
    stage: str
    model: str
    actor: str
    incarnation: str
    steps: int
    held_bytes: int
    compute_ms_p50: float
    compute_ms_p99: float
    wait_ms_p50: float
    queued: int
    retained_bytes: int
    def __init__(self, stage: _Optional[str] = ..., model: _Optional[str] = ..., actor: _Optional[str] = ..., incarnation: _Optional[str] = ..., steps: _Optional[int] = ..., held_bytes: _Optional[int] = ..., compute_ms_p50: _Optional[float] = ..., compute_ms_p99: _Optional[float] = ..., wait_ms_p50: _Optional[float] = ..., queued: _Optional[int] = ..., retained_bytes: _Optional[int] = ...) -> None: ...

class OutputPort(_message.Message):
    __slots__ = ("port", "kind", "fps", "height", "width", "chunk_frames", "first_frames")
    PORT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    FPS_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FRAMES_FIELD_NUMBER: _ClassVar[int]
    FIRST_FRAMES_FIELD_NUMBER: _ClassVar[int]
    port: str
    kind: str
    fps: float
    height: int
    width: int
    chunk_frames: int
    first_frames: int
    def __init__(self, port: _Optional[str] = ..., kind: _Optional[str] = ..., fps: _Optional[float] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., chunk_frames: _Optional[int] = ..., first_frames: _Optional[int] = ...) -> None: ...

class GetSessionRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class ListSessionsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "include_ended")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_ENDED_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    include_ended: bool
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., include_ended: _Optional[bool] = ...) -> None: ...

class ListSessionsResponse(_message.Message):
    __slots__ = ("sessions", "next_page_token")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[Session]
    next_page_token: str
    def __init__(self, sessions: _Optional[_Iterable[_Union[Session, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CloseSessionRequest(_message.Message):
    __slots__ = ("session_id", "reason")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    reason: str
    def __init__(self, session_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class SuspendSessionRequest(_message.Message):
    __slots__ = ("session_id", "reason")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    reason: str
    def __init__(self, session_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ResumeSessionRequest(_message.Message):
    __slots__ = ("session_id", "resume_token")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    resume_token: str
    def __init__(self, session_id: _Optional[str] = ..., resume_token: _Optional[str] = ...) -> None: ...

class MigrateSessionRequest(_message.Message):
    __slots__ = ("session_id", "stage", "actor")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    stage: str
    actor: str
    def __init__(self, session_id: _Optional[str] = ..., stage: _Optional[str] = ..., actor: _Optional[str] = ...) -> None: ...

class ClientMessage(_message.Message):
    __slots__ = ("open", "control", "credit", "ack", "ping", "finish", "frame")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    CONTROL_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    open: Open
    control: Control
    credit: Credit
    ack: Ack
    ping: Ping
    finish: Finish
    frame: FramePart
    def __init__(self, open: _Optional[_Union[Open, _Mapping]] = ..., control: _Optional[_Union[Control, _Mapping]] = ..., credit: _Optional[_Union[Credit, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., ping: _Optional[_Union[Ping, _Mapping]] = ..., finish: _Optional[_Union[Finish, _Mapping]] = ..., frame: _Optional[_Union[FramePart, _Mapping]] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("session_id", "role", "resume_token", "ports")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    PORTS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    role: Role
    resume_token: str
    ports: _containers.RepeatedCompositeFieldContainer[PortWish]
    def __init__(self, session_id: _Optional[str] = ..., role: _Optional[_Union[Role, str]] = ..., resume_token: _Optional[str] = ..., ports: _Optional[_Iterable[_Union[PortWish, _Mapping]]] = ...) -> None: ...

class PortWish(_message.Message):
    __slots__ = ("port", "codec", "quality", "credits", "last_received")
    PORT_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    LAST_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    port: str
    codec: Codec
    quality: int
    credits: int
    last_received: int
    def __init__(self, port: _Optional[str] = ..., codec: _Optional[_Union[Codec, str]] = ..., quality: _Optional[int] = ..., credits: _Optional[int] = ..., last_received: _Optional[int] = ...) -> None: ...

class Control(_message.Message):
    __slots__ = ("revision", "prompt", "pause", "parameters", "stage")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    PAUSE_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    revision: int
    prompt: str
    pause: bool
    parameters: _struct_pb2.Struct
    stage: str
    def __init__(self, revision: _Optional[int] = ..., prompt: _Optional[str] = ..., pause: _Optional[bool] = ..., parameters: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., stage: _Optional[str] = ...) -> None: ...

class Credit(_message.Message):
    __slots__ = ("port", "frames")
    PORT_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    port: str
    frames: int
    def __init__(self, port: _Optional[str] = ..., frames: _Optional[int] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("port", "frame")
    PORT_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    port: str
    frame: int
    def __init__(self, port: _Optional[str] = ..., frame: _Optional[int] = ...) -> None: ...

class Ping(_message.Message):
    __slots__ = ("nonce",)
    NONCE_FIELD_NUMBER: _ClassVar[int]
    nonce: int
    def __init__(self, nonce: _Optional[int] = ...) -> None: ...

class Finish(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ServerMessage(_message.Message):
    __slots__ = ("opened", "frame", "receipt", "input_ack", "event", "go_away", "pong")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    INPUT_ACK_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    GO_AWAY_FIELD_NUMBER: _ClassVar[int]
    PONG_FIELD_NUMBER: _ClassVar[int]
    opened: Opened
    frame: FramePart
    receipt: Receipt
    input_ack: InputAck
    event: Event
    go_away: GoAway
    pong: Pong
    def __init__(self, opened: _Optional[_Union[Opened, _Mapping]] = ..., frame: _Optional[_Union[FramePart, _Mapping]] = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ..., input_ack: _Optional[_Union[InputAck, _Mapping]] = ..., event: _Optional[_Union[Event, _Mapping]] = ..., go_away: _Optional[_Union[GoAway, _Mapping]] = ..., pong: _Optional[_Union[Pong, _Mapping]] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("session", "epoch", "gateways", "idle_timeout")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    GATEWAYS_FIELD_NUMBER: _ClassVar[int]
    IDLE_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    session: Session
    epoch: int
    gateways: _containers.RepeatedScalarFieldContainer[str]
    idle_timeout: _duration_pb2.Duration
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ..., epoch: _Optional[int] = ..., gateways: _Optional[_Iterable[str]] = ..., idle_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class FramePart(_message.Message):
    __slots__ = ("port", "frame", "chunk", "index_in_chunk", "pts", "epoch", "revision", "codec", "dtype", "shape", "layout", "part", "parts", "data")
    PORT_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    INDEX_IN_CHUNK_FIELD_NUMBER: _ClassVar[int]
    PTS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    port: str
    frame: int
    chunk: int
    index_in_chunk: int
    pts: int
    epoch: int
    revision: int
    codec: Codec
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    layout: str
    part: int
    parts: int
    data: bytes
    def __init__(self, port: _Optional[str] = ..., frame: _Optional[int] = ..., chunk: _Optional[int] = ..., index_in_chunk: _Optional[int] = ..., pts: _Optional[int] = ..., epoch: _Optional[int] = ..., revision: _Optional[int] = ..., codec: _Optional[_Union[Codec, str]] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., layout: _Optional[str] = ..., part: _Optional[int] = ..., parts: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("revision", "stage", "chunk", "frame", "message")
    class Stage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STAGE_UNSPECIFIED: _ClassVar[Receipt.Stage]
        STAGE_RECEIVED: _ClassVar[Receipt.Stage]
        STAGE_APPLIED: _ClassVar[Receipt.Stage]
        STAGE_REJECTED: _ClassVar[Receipt.Stage]
    STAGE_UNSPECIFIED: Receipt.Stage
    STAGE_RECEIVED: Receipt.Stage
    STAGE_APPLIED: Receipt.Stage
    STAGE_REJECTED: Receipt.Stage
    REVISION_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    revision: int
    stage: Receipt.Stage
    chunk: int
    frame: int
    message: str
    def __init__(self, revision: _Optional[int] = ..., stage: _Optional[_Union[Receipt.Stage, str]] = ..., chunk: _Optional[int] = ..., frame: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class InputAck(_message.Message):
    __slots__ = ("port", "frame")
    PORT_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    port: str
    frame: int
    def __init__(self, port: _Optional[str] = ..., frame: _Optional[int] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("type", "reason", "retry_after")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        TYPE_UNSPECIFIED: _ClassVar[Event.Type]
        TYPE_ENDED: _ClassVar[Event.Type]
        TYPE_PAUSED: _ClassVar[Event.Type]
        TYPE_RESUMED: _ClassVar[Event.Type]
        TYPE_REPLACED: _ClassVar[Event.Type]
        TYPE_RECOVERING: _ClassVar[Event.Type]
        TYPE_RECOVERED: _ClassVar[Event.Type]
        TYPE_MOVED: _ClassVar[Event.Type]
        TYPE_SUSPENDED: _ClassVar[Event.Type]
    TYPE_UNSPECIFIED: Event.Type
    TYPE_ENDED: Event.Type
    TYPE_PAUSED: Event.Type
    TYPE_RESUMED: Event.Type
    TYPE_REPLACED: Event.Type
    TYPE_RECOVERING: Event.Type
    TYPE_RECOVERED: Event.Type
    TYPE_MOVED: Event.Type
    TYPE_SUSPENDED: Event.Type
    TYPE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    type: Event.Type
    reason: str
    retry_after: _duration_pb2.Duration
    def __init__(self, type: _Optional[_Union[Event.Type, str]] = ..., reason: _Optional[str] = ..., retry_after: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class GoAway(_message.Message):
    __slots__ = ("time_left", "reason")
    TIME_LEFT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    time_left: _duration_pb2.Duration
    reason: str
    def __init__(self, time_left: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class Pong(_message.Message):
    __slots__ = ("nonce",)
    NONCE_FIELD_NUMBER: _ClassVar[int]
    nonce: int
    def __init__(self, nonce: _Optional[int] = ...) -> None: ...

class SubmitJobRequest(_message.Message):
    __slots__ = ("graph", "params", "seed", "client_id", "frames", "controls", "sinks")
    class SinksEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    CONTROLS_FIELD_NUMBER: _ClassVar[int]
    SINKS_FIELD_NUMBER: _ClassVar[int]
    graph: str
    params: _struct_pb2.Struct
    seed: int
    client_id: str
    frames: int
    controls: _containers.RepeatedCompositeFieldContainer[TimedControl]
    sinks: _containers.ScalarMap[str, str]
    def __init__(self, graph: _Optional[str] = ..., params: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., seed: _Optional[int] = ..., client_id: _Optional[str] = ..., frames: _Optional[int] = ..., controls: _Optional[_Iterable[_Union[TimedControl, _Mapping]]] = ..., sinks: _Optional[_Mapping[str, str]] = ...) -> None: ...

class TimedControl(_message.Message):
    __slots__ = ("at_frame", "control")
    AT_FRAME_FIELD_NUMBER: _ClassVar[int]
    CONTROL_FIELD_NUMBER: _ClassVar[int]
    at_frame: int
    control: Control
    def __init__(self, at_frame: _Optional[int] = ..., control: _Optional[_Union[Control, _Mapping]] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("job_id", "graph", "state", "reason", "frames_done", "frames_total", "sinks", "created", "session_id")
    class SinksEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FRAMES_DONE_FIELD_NUMBER: _ClassVar[int]
    FRAMES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    SINKS_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    graph: str
    state: JobState
    reason: str
    frames_done: int
    frames_total: int
    sinks: _containers.ScalarMap[str, str]
    created: _timestamp_pb2.Timestamp
    session_id: str
    def __init__(self, job_id: _Optional[str] = ..., graph: _Optional[str] = ..., state: _Optional[_Union[JobState, str]] = ..., reason: _Optional[str] = ..., frames_done: _Optional[int] = ..., frames_total: _Optional[int] = ..., sinks: _Optional[_Mapping[str, str]] = ..., created: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., session_id: _Optional[str] = ...) -> None: ...

class GetJobRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class ListJobsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListJobsResponse(_message.Message):
    __slots__ = ("jobs",)
    JOBS_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    def __init__(self, jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ...) -> None: ...

class CancelJobRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("version", "actors", "sessions", "store", "frozen")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ACTORS_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    FROZEN_FIELD_NUMBER: _ClassVar[int]
    version: str
    actors: _containers.RepeatedCompositeFieldContainer[ActorStatus]
    sessions: int
    store: str
    frozen: bool
    def __init__(self, version: _Optional[str] = ..., actors: _Optional[_Iterable[_Union[ActorStatus, _Mapping]]] = ..., sessions: _Optional[int] = ..., store: _Optional[str] = ..., frozen: _Optional[bool] = ...) -> None: ...

class ActorStatus(_message.Message):
    __slots__ = ("actor", "model", "incarnation", "node", "pid", "sessions", "max_sessions", "held_bytes", "steps", "up", "reserved_bytes", "step_ms_p50", "step_ms_p99", "step_age_s")
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    HELD_BYTES_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    UP_FIELD_NUMBER: _ClassVar[int]
    RESERVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    STEP_MS_P50_FIELD_NUMBER: _ClassVar[int]
    STEP_MS_P99_FIELD_NUMBER: _ClassVar[int]
    STEP_AGE_S_FIELD_NUMBER: _ClassVar[int]
    actor: str
    model: str
    incarnation: str
    node: str
    pid: int
    sessions: int
    max_sessions: int
    held_bytes: int
    steps: int
    up: bool
    reserved_bytes: int
    step_ms_p50: float
    step_ms_p99: float
    step_age_s: float
    def __init__(self, actor: _Optional[str] = ..., model: _Optional[str] = ..., incarnation: _Optional[str] = ..., node: _Optional[str] = ..., pid: _Optional[int] = ..., sessions: _Optional[int] = ..., max_sessions: _Optional[int] = ..., held_bytes: _Optional[int] = ..., steps: _Optional[int] = ..., up: _Optional[bool] = ..., reserved_bytes: _Optional[int] = ..., step_ms_p50: _Optional[float] = ..., step_ms_p99: _Optional[float] = ..., step_age_s: _Optional[float] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("target", "deadline", "undo")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    UNDO_FIELD_NUMBER: _ClassVar[int]
    target: str
    deadline: _duration_pb2.Duration
    undo: bool
    def __init__(self, target: _Optional[str] = ..., deadline: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., undo: _Optional[bool] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("actors", "sessions")
    ACTORS_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    actors: _containers.RepeatedScalarFieldContainer[str]
    sessions: int
    def __init__(self, actors: _Optional[_Iterable[str]] = ..., sessions: _Optional[int] = ...) -> None: ...

class FreezeRequest(_message.Message):
    __slots__ = ("thaw",)
    THAW_FIELD_NUMBER: _ClassVar[int]
    thaw: bool
    def __init__(self, thaw: _Optional[bool] = ...) -> None: ...

class FreezeResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WhyRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class WhyResponse(_message.Message):
    __slots__ = ("decisions",)
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    decisions: _containers.RepeatedCompositeFieldContainer[Decision]
    def __init__(self, decisions: _Optional[_Iterable[_Union[Decision, _Mapping]]] = ...) -> None: ...

class Decision(_message.Message):
    __slots__ = ("at", "kind", "model", "line", "inputs")
    class InputsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    AT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LINE_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    at: _timestamp_pb2.Timestamp
    kind: str
    model: str
    line: str
    inputs: _containers.ScalarMap[str, str]
    def __init__(self, at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., kind: _Optional[str] = ..., model: _Optional[str] = ..., line: _Optional[str] = ..., inputs: _Optional[_Mapping[str, str]] = ...) -> None: ...

class UpgradeRequest(_message.Message):
    __slots__ = ("actor", "deadline")
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    actor: str
    deadline: _duration_pb2.Duration
    def __init__(self, actor: _Optional[str] = ..., deadline: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class UpgradeResponse(_message.Message):
    __slots__ = ("incarnation_left", "sessions")
    INCARNATION_LEFT_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    incarnation_left: str
    sessions: int
    def __init__(self, incarnation_left: _Optional[str] = ..., sessions: _Optional[int] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ("start",)
    START_FIELD_NUMBER: _ClassVar[int]
    start: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, start: _Optional[_Iterable[str]] = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "stage", "class_path", "params", "inputs", "outputs", "controls", "fps", "retained_bytes", "licence")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    CLASS_PATH_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    CONTROLS_FIELD_NUMBER: _ClassVar[int]
    FPS_FIELD_NUMBER: _ClassVar[int]
    RETAINED_BYTES_FIELD_NUMBER: _ClassVar[int]
    LICENCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    stage: str
    class_path: str
    params: _containers.RepeatedCompositeFieldContainer[Param]
    inputs: _containers.RepeatedCompositeFieldContainer[PortSpec]
    outputs: _containers.RepeatedCompositeFieldContainer[PortSpec]
    controls: _containers.RepeatedScalarFieldContainer[str]
    fps: float
    retained_bytes: int
    licence: str
    def __init__(self, name: _Optional[str] = ..., stage: _Optional[str] = ..., class_path: _Optional[str] = ..., params: _Optional[_Iterable[_Union[Param, _Mapping]]] = ..., inputs: _Optional[_Iterable[_Union[PortSpec, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[PortSpec, _Mapping]]] = ..., controls: _Optional[_Iterable[str]] = ..., fps: _Optional[float] = ..., retained_bytes: _Optional[int] = ..., licence: _Optional[str] = ...) -> None: ...

class Param(_message.Message):
    __slots__ = ("name", "type", "default", "required")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_FIELD_NUMBER: _ClassVar[int]
    name: str
    type: str
    default: str
    required: bool
    def __init__(self, name: _Optional[str] = ..., type: _Optional[str] = ..., default: _Optional[str] = ..., required: _Optional[bool] = ...) -> None: ...

class PortSpec(_message.Message):
    __slots__ = ("port", "kind")
    PORT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    port: str
    kind: str
    def __init__(self, port: _Optional[str] = ..., kind: _Optional[str] = ...) -> None: ...

class ListGraphsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListGraphsResponse(_message.Message):
    __slots__ = ("graphs",)
    GRAPHS_FIELD_NUMBER: _ClassVar[int]
    graphs: _containers.RepeatedCompositeFieldContainer[Graph]
    def __init__(self, graphs: _Optional[_Iterable[_Union[Graph, _Mapping]]] = ...) -> None: ...

class Graph(_message.Message):
    __slots__ = ("name", "description", "stages", "edges", "outputs")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    stages: _containers.RepeatedCompositeFieldContainer[GraphStage]
    edges: _containers.RepeatedCompositeFieldContainer[GraphEdge]
    outputs: _containers.RepeatedCompositeFieldContainer[OutputPort]
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., stages: _Optional[_Iterable[_Union[GraphStage, _Mapping]]] = ..., edges: _Optional[_Iterable[_Union[GraphEdge, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[OutputPort, _Mapping]]] = ...) -> None: ...

class GraphStage(_message.Message):
    __slots__ = ("stage", "model")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    stage: str
    model: str
    def __init__(self, stage: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class GraphEdge(_message.Message):
    __slots__ = ("source", "target")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    source: str
    target: str
    def __init__(self, source: _Optional[str] = ..., target: _Optional[str] = ...) -> None: ...
