"""Ray actors behind the protocols of `graphs/stage.py`: calls are awaited, and Ray's errors become ours."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from riverrun.actors.line import Line
from riverrun.graphs.stage import (
    ActorDied,
    AttachReply,
    Epoch,
    OpenReply,
    OpenRequest,
    Packet,
    RestoreReply,
    RestoreRequest,
    SaveOrder,
    StageGone,
    StepReply,
    StepRequest,
)
from riverrun.models.base import BadRequest, Corrupt, Unavailable
from riverrun.store.checkpoints import Manifest


async def ask(call: Awaitable[Any], who: str) -> Any:
    """The result of a remote call. The actor's own BadRequest, Unavailable and Corrupt arrive as they were raised."""
    try:
        return await call
    except RayTaskError as error:
        raise own_error(error) from None
    except RayActorError as error:
        raise ActorDied(f"{who} died") from error
    except RayError as error:
        raise StageGone(f"{who} can't be reached: {type(error).__name__}") from error


def own_error(error: RayTaskError) -> Exception:
    """What the actor raised, if it is ours; Corrupt otherwise."""
    cause = error.cause
    if isinstance(cause, BadRequest | Unavailable | Corrupt):
        return cause
    return Corrupt(f"{type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else ''}")


class RayStageHandle:
    """`StageHandle` over a stage actor.

    stage: the graph's name for it; an actor may serve several stages of one session, so it knows each as
    "session/stage". by_reference: output ports that feed another stage; their large chunks stay in the object store,
    while what only clients read comes back inline.

    Steps go over a line (`actors/line.py`) where the actor is on this machine and no references travel, else through
    Ray. A line that breaks is not made again: Ray says whether the actor lives, and repeats the step if it does.
    """

    def __init__(
        self, actor: ray.actor.ActorHandle, who: str, stage: str, by_reference: frozenset[str] = frozenset()
    ) -> None:
        self._actor, self._who, self._stage, self._by_reference = actor, who, stage, by_reference
        self._line: Line | None = None
        self._wants_line = not by_reference

    async def open(self, request: OpenRequest) -> OpenReply:
        return await ask(self._actor.open.remote(replace(request, session=self._key(request.session))), self._who)

    async def step(self, request: StepRequest) -> StepReply:
        named = replace(request, session=self._key(request.session))
        line = await self._line_for(named)
        if line:
            try:
                return await line.call(named)
            except OSError:
                line.close()
                self._line = None
        return await ask(self._actor.step.remote(named, self._by_reference), self._who)

    async def attach(self, session: str, epoch: Epoch) -> AttachReply:
        return await ask(self._actor.attach.remote(self._key(session), epoch, self._by_reference), self._who)

    async def saved(self, session: str, epoch: Epoch, seq: int) -> Manifest:
        return await ask(self._actor.saved.remote(self._key(session), epoch, seq), self._who)

    async def save(self, session: str, epoch: Epoch, order: SaveOrder) -> Manifest:
        return await ask(self._actor.save.remote(self._key(session), epoch, order), self._who)

    async def export(self, session: str, epoch: Epoch) -> Packet:
        return await ask(self._actor.export.remote(self._key(session), epoch), self._who)

    async def prepare(self, request: RestoreRequest) -> None:
        await ask(self._actor.prepare.remote(self._named(request)), self._who)
        await self._connect()  # a session that moves here must not wait for it

    async def restore(self, request: RestoreRequest) -> RestoreReply:
        return await ask(self._actor.restore.remote(self._named(request)), self._who)

    def _named(self, request: RestoreRequest) -> RestoreRequest:
        return replace(request, opening=replace(request.opening, session=self._key(request.opening.session)))

    async def close(self, session: str, epoch: Epoch, life: int | None = None) -> None:
        if self._line:
            self._line.close()
        await ask(self._actor.close.remote(self._key(session), epoch, life), self._who)

    async def _line_for(self, request: StepRequest) -> Line | None:
        """The line, made at the first step unless it was before."""
        await self._connect()
        return None if any(isinstance(chunk.data, ray.ObjectRef) for chunk in request.inputs) else self._line

    async def _connect(self) -> None:
        if self._wants_line:
            self._wants_line = False
            place = await ask(self._actor.line.remote(), self._who)
            if place.node == ray.get_runtime_context().get_node_id():
                with suppress(OSError):
                    self._line = await Line.to(place)

    def _key(self, session: str) -> str:
        return f"{session}/{self._stage}"

    async def fetch(self, data: Any) -> np.ndarray:
        return await ask(data, self._who) if isinstance(data, ray.ObjectRef) else data


class RayEncoderHandle:
    """`EncoderHandle` over the shared encoder actor. again: asks for the one that took its place after it died."""

    def __init__(
        self, actor: ray.actor.ActorHandle, who: str, again: Callable[[], Awaitable[ray.actor.ActorHandle]]
    ) -> None:
        self._actor, self._who, self._again = actor, who, again

    async def encode(self, text: str) -> np.ndarray:
        try:
            return await ask(self._actor.encode.remote(text), self._who)
        except StageGone:
            self._actor = await self._again()
            return await ask(self._actor.encode.remote(text), self._who)
