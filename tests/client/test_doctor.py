"""What the doctor says of stores, exposure, tokens and certificates."""

import datetime
import hashlib
import json

import pytest
import redis

from riverrun.client.doctor_store import Facts, judged, store
from riverrun.client.doctor_trust import callers, certificates, exposure, metrics
from riverrun.configs import ServiceConfig, load_service
from riverrun.store.embedded import EmbeddedServer
from riverrun.tests.certificates import NOW, Authority

INFO = {"redis_version": "7.2.4", "role": "master", "aof_enabled": 1, "maxmemory_policy": "noeviction", "maxmemory": 0}
NEAR = "redis://127.0.0.1:6379"


@pytest.mark.parametrize(
    ("url", "info", "settings", "expected"),
    [
        ("", {}, {}, []),
        (NEAR, {}, {"appendfsync": "everysec", "save": ""}, []),
        ("rediss://:pw@store.example", {}, {}, []),
        (NEAR, {"redis_version": "6.0.16"}, {}, ["missing needs 6.2 or newer"]),
        (NEAR, {"redis_version": "6.2.0"}, {}, []),
        (NEAR, {"redis_version": "10.1"}, {}, []),
        (NEAR, {"cluster_enabled": 1}, {}, ["missing a cluster's URL is redis+cluster"]),
        (NEAR.replace("redis:", "redis+cluster:"), {"cluster_enabled": 1}, {}, []),
        (NEAR.replace("redis:", "redis+cluster:"), {}, {}, ["missing a cluster's URL is redis+cluster"]),
        (NEAR, {"role": "slave"}, {}, ["missing name its master"]),
        (NEAR, {"maxmemory_policy": "allkeys-lru"}, {}, ["note sessions may vanish"]),
        (NEAR, {"maxmemory": 100, "used_memory": 81}, {}, ["note raise maxmemory"]),
        (NEAR, {"maxmemory": 100, "used_memory": 79}, {}, []),
        (NEAR, {"aof_enabled": 0}, {"save": ""}, ["note off: a restart of it forgets every session"]),
        (NEAR, {"aof_enabled": 0}, {}, ["note does not tell of `save`"]),
        (NEAR, {"aof_enabled": 0}, {"save": "3600 1"}, ["note snapshots alone"]),
        (NEAR, {}, {"appendfsync": "no"}, ["note appendfsync is no"]),
        (NEAR, {"aof_last_write_status": "err"}, {}, ["note its last write to disk failed"]),
        ("redis://store.example", {}, {}, ["note asks for no password"]),
        ("rediss://10.0.0.7", {}, {}, ["note asks for no password"]),
        ("redis://:pw@10.0.0.7", {}, {}, ["note without TLS"]),
        (NEAR, {"maxmemory_policy": "volatile-ttl", "aof_enabled": 0}, {"save": ""}, ["note sessions", "note off"]),
    ],
)
def test_a_stores_settings(url, info, settings, expected):
    said = [f for f in judged(Facts(url, INFO | info, settings)) if f.state != "ok"]
    assert len(said) == len(expected)
    for finding, wanted in zip(said, expected, strict=True):
        state, _, words = wanted.partition(" ")
        assert finding.state == state
        assert words in f"{finding.found} {finding.advice}"
        assert "pw" not in finding.found


def test_a_real_store_is_asked(tmp_path):
    with EmbeddedServer(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        config = ServiceConfig(redis_url=server.url)
        assert [f.state for f in store(config)] == ["ok"]
        for name, value in {"maxmemory-policy": "allkeys-lru", "appendonly": "no", "save": ""}.items():
            client.config_set(name, value)
        said = [(f.state, f.what) for f in store(config)]
    assert said == [("ok", "store"), ("note", "store memory"), ("note", "store persistence")]
    assert [f.state for f in store(config)] == ["missing"]


@pytest.mark.parametrize(
    ("overrides", "state", "words"),
    [
        ([], "ok", "this machine only, everybody on it"),
        (["auth.tokens_file=x"], "ok", "this machine only"),
        (["host=0.0.0.0"], "missing", "open, without authentication"),
        (["host=0.0.0.0", "auth.allow_open=true"], "note", "open, without authentication"),
        (["host=0.0.0.0", "auth.tokens_file=x"], "note", "in plain text"),
        (["host=0.0.0.0", "auth.tokens_file=x", "tls.cert=c", "tls.key=k"], "ok", "TLS"),
    ],
)
def test_exposure(overrides, state, words):
    finding = exposure(load_service(None, overrides))
    assert finding.state == state
    assert words in finding.found
    assert bool(finding.advice) == (state != "ok")


def test_tokens(tmp_path):
    path = tmp_path / "tokens.yaml"
    config = load_service(None, [f"auth.tokens_file={path}"])
    assert callers(ServiceConfig()) == []
    assert callers(config)[0].state == "missing"
    digests = {tenant: hashlib.sha256(tenant.encode()).hexdigest() for tenant in "ab"}
    rows = [{"tenant": t, "role": r, "token_sha256": digests[t]} for t, r in (("a", "viewer"), ("b", "admin"))]
    path.write_text(json.dumps(rows))
    path.chmod(0o600)
    assert [(f.state, f.found) for f in callers(config)] == [("ok", "2 (1 admin, 1 viewer) of 2 tenants")]


@pytest.mark.parametrize(("days", "state"), [(60, "ok"), (29, "note"), (-1, "missing")])
def test_certificates(tmp_path, days, state):
    authority = Authority(tmp_path)
    own = authority.sign("service", days=days)
    assert certificates(ServiceConfig()) == []
    files = [f"tls.cert={own.cert}", f"tls.key={own.key}", f"tls.client_ca={authority.path}"]
    found = certificates(load_service(None, files), lambda: NOW)
    assert [f.state for f in found] == [state, "ok"]
    later = certificates(load_service(None, files), lambda: NOW + datetime.timedelta(days=400))
    assert [f.state for f in later] == ["missing", "missing"]
    wrong = certificates(load_service(None, [f"tls.cert={own.cert}", f"tls.key={own.cert}"]))
    assert [f.state for f in wrong] == ["missing"]


def test_metrics():
    assert metrics(ServiceConfig()) == []
    assert metrics(load_service(None, ["metrics_port=0"])) == []
    assert [f.state for f in metrics(load_service(None, ["metrics_port=0", "metrics_host=0.0.0.0"]))] == ["note"]
