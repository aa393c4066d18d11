"""What a consumer of a session is given: frames, receipts, input acks, events."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np


@dataclass(frozen=True)
class Frame:
    """One frame. number: on its port, from 0. chunk, index: the chunk it came in, and its place there.

    pts: media time, 1/90000 s. revision: the newest control in force for it. array: one frame of the port's `Kind`
    (FRAMES: uint8 [H, W, 3]); a read-only view into its chunk, so copy what is to be kept. trace: see `Chunk`.
    """

    port: str
    number: int
    chunk: int
    index: int
    pts: int
    epoch: int
    revision: int
    array: np.ndarray
    trace: str = ""


class ReceiptStage(StrEnum):
    RECEIVED = "received"
    APPLIED = "applied"
    REJECTED = "rejected"


@dataclass(frozen=True)
class Receipt:
    """What became of a control. chunk, frame: where it is in force from, on the first output port of the stage that
    took it (the last of them to make one, if several did). message: why it was rejected. A control that is overtaken by
    the session's end has no second receipt."""

    revision: int
    stage: ReceiptStage
    chunk: int = 0
    frame: int = 0
    message: str = ""


@dataclass(frozen=True)
class InputAck:
    """Input on this graph input up to and including frame number `frame` need not be kept by the client."""

    port: str
    frame: int


@dataclass(frozen=True)
class InputRefusal:
    """Frame number `frame` of this graph input was not taken by its stage, and is left out; message: why."""

    port: str
    frame: int
    message: str


class EventType(StrEnum):
    ENDED = "ended"
    PAUSED = "paused"
    RESUMED = "resumed"
    REPLACED = "replaced"
    RECOVERING = "recovering"
    RECOVERED = "recovered"
    MOVED = "moved"
    SUSPENDED = "suspended"


@dataclass(frozen=True)
class Event:
    """Something that happened to the session. failed: with ENDED, whether it ended by a fault. retry_s: with SUSPENDED,
    when to come back; 0: whenever you like."""

    type: EventType
    reason: str = ""
    failed: bool = False
    retry_s: float = 0.0


Notice = Receipt | InputAck | InputRefusal | Event
Item = Frame | Notice
