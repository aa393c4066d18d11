"""Who calls and whether they may: asked once, before any method of ours runs.

Each call is answered for its caller: `caller()` says who that is. What a method does with another tenant's sessions is
its own business (`SessionHost.check_owner`); which role it takes to call it at all is in the table here, and a method
that is not in it takes an admin.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import Any

import grpc
from cryptography import x509
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]

from riverrun.actors.errors import Denied, Unauthenticated, mapped
from riverrun.actors.principal import ANYBODY, Principal, Role, principal
from riverrun.actors.tokens import TokenFile
from riverrun.configs import ServiceConfig
from riverrun.models.base import BadRequest

Context = grpc.aio.ServicerContext
Metadata = Iterable[tuple[str, str | bytes]]

OURS = "riverrun.v1"
NEEDED: Mapping[str, Role] = {
    **dict.fromkeys(("Sessions/Get", "Sessions/List", "Streams/Connect"), Role.VIEWER),
    **dict.fromkeys(("Jobs/Get", "Jobs/List", "Jobs/Watch"), Role.VIEWER),
    **dict.fromkeys(("Cluster/Status", "Cluster/ListModels", "Cluster/ListGraphs"), Role.VIEWER),
    **dict.fromkeys(("Sessions/Create", "Sessions/Close", "Jobs/Submit", "Jobs/Cancel"), Role.CONTROLLER),
    **dict.fromkeys(("Sessions/Suspend", "Sessions/Resume"), Role.CONTROLLER),
}
"""By service and method; to connect as a stream's controller takes Role.CONTROLLER too (`actors/streams.py`)."""

_CALLER: ContextVar[Principal] = ContextVar("caller")


def caller() -> Principal:
    """Who makes the call that this task answers."""
    return _CALLER.get()


def needed(method: str) -> Role | None:
    """The role that "/package.Service/Method" takes; None: nobody is asked."""
    service, _, name = method.removeprefix("/").partition("/")
    if service == health.SERVICE_NAME:
        return None
    if service == reflection.SERVICE_NAME:
        return Role.VIEWER
    return NEEDED.get(f"{service.removeprefix(OURS + '.')}/{name}", Role.ADMIN)


def check_role(who: Principal, role: Role, what: str) -> None:
    """Raises Denied, naming both roles."""
    if who.role < role:
        raise Denied(f"{what} takes role {role.name.lower()}; yours is {who.role.name.lower()}")


class Callers:
    """Knows callers by their token or, where clients must show certificates, by the subject of theirs."""

    def __init__(self, config: ServiceConfig) -> None:
        self._is_open = config.is_open
        self._tokens = TokenFile(config.auth.tokens_file) if config.auth.tokens_file else None
        self._takes_certificates = bool(config.tls.client_ca)

    def identify(self, metadata: Metadata, peer: Mapping[str, Any]) -> Principal:
        """peer: as `ServicerContext.auth_context` has it. A token, if one is sent, decides; raises Unauthenticated."""
        if self._is_open:
            return ANYBODY
        if self._tokens and (token := bearer(metadata)):
            return self._tokens.find(token)
        certificates = peer.get("x509_pem_cert") if self._takes_certificates else None
        if certificates:
            return subject_of(certificates[0])
        raise Unauthenticated("no token: send metadata `authorization: Bearer TOKEN`")


def bearer(metadata: Metadata) -> str:
    """The token of a call's metadata, "" without one. Raises Unauthenticated for what is no bearer token."""
    found = [value for key, value in metadata if key == "authorization"]
    if not found:
        return ""
    scheme, _, token = str(found[0]).partition(" ")
    if len(found) > 1 or scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated("metadata `authorization` must be sent once, as `Bearer TOKEN`")
    return token.strip()


def subject_of(pem: bytes) -> Principal:
    """Who a certificate is for: CN is the name, O the tenant, OU the role. gRPC has checked that it is signed."""
    subject = x509.load_pem_x509_certificate(pem).subject
    fields = [[str(a.value) for a in subject.get_attributes_for_oid(oid)] for oid in _SUBJECT]
    if any(len(values) != 1 for values in fields):
        raise Unauthenticated("the certificate's subject must have one CN (name), one O (tenant) and one OU (role)")
    (name,), (tenant,), (role,) = fields
    try:
        return principal(tenant, role, name)
    except BadRequest as error:
        raise Unauthenticated(f"the certificate's subject (O is the tenant, OU the role): {error}") from None


_SUBJECT = (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME)


class Guard(grpc.aio.ServerInterceptor):
    """Lets a call through to its method when its caller is known and has the role."""

    def __init__(self, callers: Callers) -> None:
        self._callers = callers

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        handler, role = await continuation(details), needed(details.method)
        if handler is None or role is None:
            return handler
        return _guarded(handler, lambda context: self._admit(context, role, details.method))

    def _admit(self, context: Context, role: Role, method: str) -> None:
        who = self._callers.identify(context.invocation_metadata() or (), context.auth_context())
        check_role(who, role, method.removeprefix("/"))
        _CALLER.set(who)


def _guarded(handler: Any, admit: Callable[[Context], None]) -> grpc.RpcMethodHandler:
    """The same handler, after `admit`. Each of the four kinds of method has its own way to be called."""
    asks, answers = (
        "stream" if streams else "unary" for streams in (handler.request_streaming, handler.response_streaming)
    )
    inner = getattr(handler, f"{asks}_{answers}")

    async def once(request: Any, context: Context) -> Any:
        async with mapped(context):
            admit(context)
        return await inner(request, context)

    async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
        async with mapped(context):
            admit(context)
        async with contextlib.aclosing(inner(request, context)) as replies:
            async for reply in replies:
                yield reply

    make = getattr(grpc, f"{asks}_{answers}_rpc_method_handler")
    behaviour = stream if inspect.isasyncgenfunction(inner) else once
    return make(behaviour, handler.request_deserializer, handler.response_serializer)
