"""Opens a session at every stage of its graph: prompts encoded first, all stages at once, each within its time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from typing import TypeVar

from riverrun.graphs.controls import PROMPT
from riverrun.graphs.graph import Graph
from riverrun.graphs.stage import EncoderHandle, Epoch, OpenReply, OpenRequest, StageGone, StageHandle, StaleEpoch
from riverrun.graphs.waiting import Clock, within
from riverrun.models.base import Corrupt, Unavailable
from riverrun.store.records import SessionRecord

log = logging.getLogger(__name__)
T = TypeVar("T")


async def answer(clock: Clock, seconds: float, work: Awaitable[T], who: str) -> T:
    """What `who` answers; raises StageGone, naming it, when that takes longer than `seconds`."""
    try:
        return await within(clock, seconds, work)
    except TimeoutError as error:
        raise StageGone(f"{who} did not answer for {seconds:g} s") from error


async def let_go(
    clock: Clock, seconds: float, handle: StageHandle, session: str, epoch: Epoch, life: int | None
) -> None:
    """Frees what lies on an actor that is not used any more, up to this life; it may be dead. Raises StaleEpoch: it is
    another runner's."""
    try:
        await answer(clock, seconds, handle.close(session, epoch, life), "it")
    except StaleEpoch:
        raise
    except (Unavailable, Corrupt) as error:
        log.info("session %s: what was given up does not answer: %s", session, str(error))


def stage_seed(seed: int, index: int) -> int:
    """64 bits for the stage at place `index` of the graph: no two stages of a session draw the same noise.

    The first stage's is the session's own, so that a model stepped alone with that seed makes the same frames.
    """
    return (seed + index * 0x9E3779B97F4A7C15) % 2**64  # odd, so all differ


async def opening(
    record: SessionRecord,
    epoch: Epoch,
    graph: Graph,
    stage: str,
    encoders: Mapping[str, EncoderHandle],
    clock: Clock,
    encode_s: float,
) -> OpenRequest:
    """How a stage of the session is opened, the first time and every time it begins again: its prompt encoded."""
    params = record.params.get(stage, {})
    embedding = None
    if stage in encoders and PROMPT in params:
        embedding = await answer(clock, encode_s, encoders[stage].encode(params[PROMPT]), "the prompt encoder")
    return OpenRequest(record.id, epoch, params, stage_seed(record.seed, graph.order().index(stage)), embedding)


async def open_stages(
    record: SessionRecord,
    epoch: Epoch,
    graph: Graph,
    stages: Mapping[str, StageHandle],
    encoders: Mapping[str, EncoderHandle],
    clock: Clock,
    open_s: float,
    encode_s: float,
) -> dict[str, OpenReply]:
    """Replies by stage. The first failure cancels the others; what was opened is the caller's to close."""

    async def open_one(name: str) -> OpenReply:
        request = await opening(record, epoch, graph, name, encoders, clock, encode_s)
        return await answer(clock, open_s, stages[name].open(request), f"stage {name!r}")

    async with asyncio.TaskGroup() as tasks:
        replies = {name: tasks.create_task(open_one(name)) for name in stages}
    return {name: reply.result() for name, reply in replies.items()}
