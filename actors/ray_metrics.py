"""The figures of a gateway through Ray's own exporter, so that whoever scrapes the nodes of a cluster has them too."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.samples import Sample

log = logging.getLogger(__name__)
PUSH_S = 5.0
"""Ray's own interval is 10 s; what is said more often is not seen."""

PREFIX = "riverrun_"
"""What else is in a registry is about the process, of which Ray tells by itself."""


class RayExport:
    """Says the samples of a registry to Ray, each under the name it has and as a gauge: `riverrun_x_total` comes out as
    `ray_riverrun_x_total`, with the same labels and Ray's own. So a query differs in the prefix alone, and there is one
    place where figures are made. gauge: makes one of a name, a description and label names.

    A series that is gone (no session of a graph is in that state any more) is said to be 0: Ray would repeat the last
    value as long as the process lives.
    """

    def __init__(self, registry: CollectorRegistry, gauge: Callable[..., Any]) -> None:
        self._registry, self._gauge = registry, gauge
        self._gauges: dict[str, Any] = {}
        self._said: dict[tuple[str, tuple[tuple[str, str], ...]], dict[str, str]] = {}

    def push(self) -> None:
        """Reads every figure once, and says it."""
        before, self._said = self._said, {}
        for family in self._registry.collect():
            for sample in family.samples:
                if sample.name.startswith(PREFIX):
                    self._say(sample, family.documentation)
        for key in before.keys() - self._said.keys():
            self._gauges[key[0]].set(0.0, tags=before[key])

    def _say(self, sample: Sample, about: str) -> None:
        if sample.name not in self._gauges:
            self._gauges[sample.name] = self._gauge(sample.name, about, tuple(sample.labels))
        self._gauges[sample.name].set(float(sample.value), tags=dict(sample.labels))
        self._said[sample.name, tuple(sorted(sample.labels.items()))] = dict(sample.labels)


@contextlib.asynccontextmanager
async def through_ray(registry: CollectorRegistry) -> AsyncIterator[None]:
    """Inside, what is in `registry` is said to Ray every few seconds, on a thread of its own."""
    from ray.util.metrics import Gauge

    export, over = RayExport(registry, Gauge), threading.Event()

    def run() -> None:
        while not over.is_set():
            try:
                export.push()
            except TimeoutError:  # the sessions' loop has no time to answer
                log.warning("figures could not be read for Ray's exporter")
            over.wait(PUSH_S)

    thread = threading.Thread(target=run, name="ray-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        await asyncio.to_thread(thread.join)  # it may be asking this very loop
