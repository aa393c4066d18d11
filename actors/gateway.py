"""The gateway: one grpc.aio server with all services, and how it leaves without surprising anybody."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]

from riverrun.actors.auth import Callers, Guard
from riverrun.actors.calls import Count, CountCalls
from riverrun.actors.directory import Directory
from riverrun.actors.host import SessionHost
from riverrun.actors.jobs import JobDesk
from riverrun.actors.malformed import UNREAD_BYTES, RefuseMalformed
from riverrun.actors.servicers import Cluster, Jobs, Sessions
from riverrun.actors.streams import Streams
from riverrun.actors.tls import server_credentials
from riverrun.models.base import Unavailable
from riverrun.protos import riverrun_pb2 as pb
from riverrun.protos import riverrun_pb2_grpc as rpc

log = logging.getLogger(__name__)
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
SERVICES = tuple(service.full_name for service in pb.DESCRIPTOR.services_by_name.values())
STOP_S = 2.0
OPTIONS = (
    ("grpc.so_reuseport", 0),  # a second service on the same port is an error, not a lottery
    ("grpc.max_receive_message_length", UNREAD_BYTES),
    ("grpc.keepalive_time_ms", 20_000),  # finds clients that went without a word
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
)


class Gateway:
    """Serves a `SessionHost`. store: what kind it is, for `Cluster.Status`. count: told of every call that ended."""

    def __init__(self, host: SessionHost, directory: Directory, store: str, count: Count | None = None) -> None:
        self._host = host
        self._pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="encode")
        self._jobs = JobDesk(host, self._pool)
        self._gateways: list[str] = []
        self._streams = Streams(host, self._pool, self._gateways)
        self._health = health.aio.HealthServicer()
        inside: list[grpc.aio.ServerInterceptor] = [Guard(Callers(host.config)), RefuseMalformed()]
        if count:
            inside.insert(0, CountCalls(count))  # the outermost: it sees what the others refuse
        self._server = grpc.aio.server(interceptors=inside, options=OPTIONS)
        rpc.add_SessionsServicer_to_server(Sessions(host, self._gateways), self._server)
        rpc.add_StreamsServicer_to_server(self._streams, self._server)
        rpc.add_JobsServicer_to_server(Jobs(self._jobs), self._server)
        rpc.add_ClusterServicer_to_server(Cluster(host, directory, store), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self.address = ""

    async def start(self, host: str, port: int) -> None:
        """Listens. Raises Unavailable if the port is taken, BadRequest for TLS files that can't be used."""
        credentials = server_credentials(self._host.config.tls)
        at = f"{host}:{port}"
        try:
            server = self._server
            bound = server.add_secure_port(at, credentials) if credentials else server.add_insecure_port(at)
        except RuntimeError as error:
            raise Unavailable(
                f"can't listen on {host}:{port}: the port is taken, or the address is not ours"
            ) from error
        await self._server.start()
        self.address = f"{_reachable(host)}:{bound}"
        self._gateways.append(self.address)
        await self._say(SERVING)

    async def stop(self, drain_s: float, reason: str) -> None:
        """Leaves: not healthy, no new sessions; clients are told and get `drain_s` to go; then every session ends."""
        self._host.closing = reason
        await self._say(NOT_SERVING)
        await self._streams.go_away(drain_s, reason)
        await self._streams.emptied(drain_s)
        if not (self._host.vault and self._host.hands_over):
            await self._jobs.close(reason)
        await self._host.close_all(reason)
        await self._jobs.left()
        await self._streams.emptied(STOP_S)
        await self._server.stop(STOP_S)
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def look_after_jobs(self) -> None:
        """Goes on with those whose gateways have died, for ever."""
        await self._jobs.look()

    def meet(self, addresses: Iterable[str]) -> None:
        """Clients are told of these gateways besides this one."""
        self._gateways[:] = [self.address, *sorted(set(addresses) - {self.address})]

    @property
    def sessions(self) -> int:
        """How many run here."""
        return len(self._host)

    async def check(self) -> None:
        """Raises Corrupt where the books of sessions, jobs, actors or store do not add up. For tests."""
        self._host.check()
        self._jobs.check()
        await self._host.directory.check()
        await self._host.store.check()

    def hurry(self) -> None:
        """Clients get no more time to leave."""
        self._streams.hurry()

    async def _say(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in ("", *SERVICES):
            await self._health.set(name, status)


def _reachable(host: str) -> str:
    """The name under which others reach an address that listens on all interfaces."""
    return socket.gethostname() if host in ("0.0.0.0", "::", "[::]") else host
