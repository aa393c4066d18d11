"""What `riverrun doctor` finds out about trust: who reaches the service, whom it asks what, and until when."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from riverrun.client.finding import Finding
from riverrun.configs import ServiceConfig
from riverrun.models.base import BadRequest

SOON_DAYS = 30


def exposure(config: ServiceConfig) -> Finding:
    """Who reaches the service, and whether they are asked who they are."""
    host, what = config.host, "exposure"
    if not config.is_exposed:
        return Finding(what, "ok", f"{host}: this machine only{', everybody on it' if config.is_open else ''}")
    if config.is_open and not config.auth.allow_open:
        advice = "it will not start: set auth.tokens_file (`riverrun tokens new` makes one) or tls.client_ca"
        return Finding(what, "missing", f"{host}: open, without authentication", advice)
    if config.is_open:
        advice = "anybody who reaches it may use it: keep it behind a firewall or a proxy that checks callers"
        return Finding(what, "note", f"{host}: open, without authentication", advice)
    if not config.tls.cert:
        advice = "set tls.cert and tls.key, or keep it behind a proxy that speaks TLS"
        return Finding(what, "note", f"{host}: tokens and frames go over the network in plain text", advice)
    return Finding(what, "ok", f"{host}: TLS, and callers are asked who they are")


def callers(config: ServiceConfig) -> list[Finding]:
    """The tokens that are taken."""
    from riverrun.actors.tokens import read_tokens

    if not config.auth.tokens_file:
        return []
    try:
        entries = read_tokens(Path(config.auth.tokens_file).expanduser())
    except BadRequest as error:
        return [Finding("tokens", "missing", str(error))]
    roles = Counter(entry.who.role.name.lower() for entry in entries)
    tenants = len({entry.who.tenant for entry in entries})
    said = ", ".join(f"{count} {role}" for role, count in sorted(roles.items()))
    return [Finding("tokens", "ok", f"{len(entries)} ({said}) of {tenants} tenant{'s' * (tenants > 1)}")]


def certificates(config: ServiceConfig, now: Callable[[], datetime.datetime] | None = None) -> list[Finding]:
    """The service's certificate and its clients' authority: usable, and until when. now: the time, in UTC."""
    from riverrun.actors.tls import certificate_configuration

    if not config.tls.cert:
        return []
    try:
        certificate_configuration(config.tls)
    except BadRequest as error:
        return [Finding("certificate", "missing", str(error))]
    today = now() if now else datetime.datetime.now(datetime.UTC)
    own = _until("certificate", config.tls.cert, today)
    return [own, _until("client authority", config.tls.client_ca, today)] if config.tls.client_ca else [own]


def metrics(config: ServiceConfig) -> list[Finding]:
    """Its figures are told to whoever asks."""
    if config.metrics_port is None or not replace(config, host=config.metrics_host).is_exposed:
        return []
    advice = "they name graphs and models, and ask for no token: a firewall, or metrics_host=127.0.0.1"
    return [Finding("metrics", "note", f"{config.metrics_host}: open", advice)]


def _until(what: str, path: str, today: datetime.datetime) -> Finding:
    """Of the certificate in the file that ends first."""
    from riverrun.actors.tls import certificates as read
    from riverrun.actors.tls import pem

    first = min(read(path, pem(what, path)), key=lambda one: one.not_valid_after_utc)
    end, left = first.not_valid_after_utc, (first.not_valid_after_utc - today).days
    if end <= today:
        return Finding(what, "missing", f"{path} has expired on {end:%Y-%m-%d}", "renew it: a running service takes it")
    if first.not_valid_before_utc > today:
        return Finding(what, "missing", f"{path} is not valid before {first.not_valid_before_utc:%Y-%m-%d}")
    if left < SOON_DAYS:
        return Finding(what, "note", f"{path} expires in {left} days", "renew it: a running service takes the new file")
    return Finding(what, "ok", f"until {end:%Y-%m-%d}")
