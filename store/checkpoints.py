"""What a checkpoint is: where one stage of a session stood, and the blob its State lies in.

A `Mark` counts; a `Manifest` is a mark with the blob beside it: names, shapes and checksums of the tensors, and what
must agree where it is restored. The manifest lies as a file next to its blob; the session record holds its short form
(`Manifest.brief`), from which take-over and migration go. The file is the truth: where record and files differ, the
newest file whose checksums hold counts (design §4).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from riverrun.models.base import Corrupt
from riverrun.store.jsonable import dumps

SCHEMA = 1


class Damaged(Corrupt):
    """A checkpoint's files are not what was written; they will be no better when they are read again."""


@dataclass(frozen=True)
class Mark:
    """Where one stage of a session stands between two steps.

    seq: steps made, so the number of the next one. consumed, consumed_frames: chunks and frames taken, by input port.
    chunks, frames: made so far, by output port. ready: the model could step again without input. revision: of the
    newest control in force; seen: of the newest one it was given, refused ones too. flushed: its input has ended and it
    gave what was left.
    """

    seq: int = 0
    consumed: Mapping[str, int] = field(default_factory=dict)
    consumed_frames: Mapping[str, int] = field(default_factory=dict)
    chunks: Mapping[str, int] = field(default_factory=dict)
    frames: Mapping[str, int] = field(default_factory=dict)
    ready: bool = False
    revision: int = 0
    seen: int = 0
    flushed: bool = False

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> Mark:
        """Raises Corrupt."""
        try:
            return Mark(**raw)
        except TypeError as error:
            raise Corrupt(f"a checkpoint's mark can't be read: {error}") from error


@dataclass(frozen=True)
class TensorEntry:
    """One tensor in a blob. offset, nbytes: where its raw row-major bytes lie. crc: CRC-32 of them."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    crc: int


@dataclass(frozen=True)
class Engine:
    """What must agree for a State to go on as it was: restoring on another is refused, naming both.

    model, weights: the class, and a digest of its files. dtype: of the weights. backend: of attention, and the kind of
    device ("cpu sdpa"). threads: of the actor; a `recache` checkpoint, not exact anyway, may go on with others.
    """

    model: str = ""
    weights: str = ""
    dtype: str = ""
    backend: str = ""
    threads: int = 0


@dataclass(frozen=True)
class Manifest:
    """One checkpoint of one stage.

    epoch, nonce: of the runner that ordered it. kind: "exact" or "recache" (see `models.base.Snapshot`). path: of the
    blob, below the store's root. meta: of the snapshot. crc: of the whole blob's bytes in order (the tensors' run on).
    record: the session record as JSON when it was ordered, so that a store that lost everything can be told again.
    created: seconds since 1970.
    """

    session: str
    stage: str
    epoch: int
    nonce: str
    kind: str
    mark: Mark
    path: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    tensors: tuple[TensorEntry, ...] = ()
    engine: Engine = field(default_factory=Engine)
    record: str = ""
    created: float = 0.0
    schema: int = SCHEMA

    @property
    def nbytes(self) -> int:
        """Of the blob."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def order(self) -> tuple[int, int]:
        """Later checkpoints of a stage compare higher."""
        return self.epoch, self.mark.seq

    def brief(self) -> dict[str, Any]:
        """What the session record keeps of it: a few hundred bytes."""
        return {
            "stage": self.stage,
            "epoch": self.epoch,
            "kind": self.kind,
            "path": self.path,
            "nbytes": self.nbytes,
            "created": self.created,
            "mark": self.mark.to_dict(),
        }

    def without_record(self) -> Manifest:
        """For whoever has the record anyway."""
        return dataclasses.replace(self, record="")

    def to_json(self) -> str:
        return dumps(self)

    @staticmethod
    def from_json(text: str | bytes) -> Manifest:
        """Raises Corrupt for what is no manifest, or one of another schema version (naming both)."""
        try:
            raw = json.loads(text)
            if raw.get("schema") != SCHEMA:
                raise Corrupt(f"a checkpoint has schema version {raw.get('schema')!r}, this program reads {SCHEMA}")
            raw["mark"] = Mark.from_dict(raw["mark"])
            raw["engine"] = Engine(**raw["engine"])
            raw["tensors"] = tuple(TensorEntry(**{**t, "shape": tuple(t["shape"])}) for t in raw["tensors"])
            return Manifest(**raw)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise Corrupt(f"a checkpoint's manifest can't be read: {error}") from error
