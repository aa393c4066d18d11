"""Where everything of a schedule stands, for whoever looks into a failed one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from schedule_gateways import Gateway


def describe(show: Any) -> str:
    viewer, config = show.viewer, show.config
    return "\n".join(
        [
            f"{show.case}",
            f"{config.cadence}, at {show.loop.time():.3f} s, {show.world.messages} messages",
            f"client: {viewer.received}, credits {viewer.credits}, ack every {viewer.lag}, {viewer.acked_input}",
            f"lines lost: {show.store.forgotten}",
            *(line for gateway in show.gateways if gateway.runner for line in _runner(gateway)),
            "tasks at the end:",
            *(
                f"  {g.name}: {t.get_coro().__qualname__} {t.get_stack(limit=1)}"
                for g in show.gateways
                for t in g.tasks
            ),
        ]
    )


def _runner(gateway: Gateway) -> Iterator[str]:
    runner: Any = gateway.runner
    yield f"{gateway.name}: {runner.state.value} {runner._reason}, paused: {runner.status().paused}"
    if (flow := runner._flow) is None:
        return
    for driver in flow.drivers.values():
        facts = (driver.next_seq, driver.acked, driver.log, driver.finished, driver.is_held, driver.is_stepping)
        mine = flow.saver.stages.get(driver.name)
        yield f"  {driver.name}: {facts} {driver.turn()} {driver.fault} kept {driver._kept}"
        if mine:
            yield f"    {[m.mark.seq for m in mine.book.manifests]} writing {mine.is_writing}"
    for at, edge in flow.edges.items():
        facts = (edge.base, edge.taken, edge.end, edge._pushed, edge.ended, edge.capacity, bool(edge.head))
        yield f"  {at}: {facts}"
    for name, ring in flow.audience.rings.items():
        yield f"  {name}: cursor {ring.cursor}, acked {ring.acked}, next {ring.next_frame}, {len(ring)}"
