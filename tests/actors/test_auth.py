"""Who calls, by token or certificate; what a role may do; what a tenant may take. Without a service."""

import asyncio
import hashlib
import json
import logging
import os

import pytest
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from riverrun.actors.auth import NEEDED, Callers, bearer, needed, subject_of
from riverrun.actors.errors import Unauthenticated
from riverrun.actors.principal import ANYBODY, Principal, Role
from riverrun.actors.quota import BURST_S, Pace, Quotas
from riverrun.actors.serve import check_trust
from riverrun.actors.tls import CertificateFiles
from riverrun.actors.tokens import TokenFile
from riverrun.configs import ServiceConfig, load_service
from riverrun.configs.auth import AuthConfig, Quota, TlsConfig
from riverrun.models.base import BadRequest
from riverrun.protos import riverrun_pb2 as pb
from riverrun.tests.certificates import Authority

TOKEN, OTHER = "correct horse battery".replace(" ", "-"), "another-long-token"
SHA = hashlib.sha256(TOKEN.encode()).hexdigest()
ENTRY = {"name": "render", "tenant": "acme", "role": "controller", "token_sha256": SHA}


@pytest.fixture
def tokens(tmp_path):
    """Writes a tokens file and returns its path."""

    def write(rows, mode=0o600):
        path = tmp_path / "tokens.yaml"
        path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
        path.chmod(mode)
        return path

    return write


# ---- tokens ----


def test_a_token_is_found_by_its_digest_or_as_it_is(tokens):
    plain = {"tenant": "b", "role": "VIEWER", "token": OTHER}
    file = TokenFile(tokens([ENTRY, plain]))
    assert file.find(TOKEN) == Principal("acme", Role.CONTROLLER, "render")
    assert file.find(OTHER) == Principal("b", Role.VIEWER)
    for wrong in ("", SHA, TOKEN[:-1], TOKEN + "x"):
        with pytest.raises(Unauthenticated, match="none of this service's"):
            file.find(wrong)
    assert TOKEN not in repr(vars(file))
    assert OTHER not in repr(vars(file))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "must hold a list of entries"),
        ("a: 1", "must hold a list of entries"),
        ("[: secret-secret-secret", "is neither YAML nor JSON"),
        (["secret"], "entry 1 must have tenant, role and token_sha256"),
        ([ENTRY | {"rolle": "x"}], "entry 1: unknown key 'rolle'; there are name, role, tenant, token, token_sha256"),
        ([ENTRY | {"role": "king"}], "entry 1: role must be viewer, controller, admin, got 'king'"),
        ([ENTRY | {"tenant": "a/b"}], r"entry 1: tenant must be 1..64 letters, .*, got 'a/b'"),
        ([ENTRY | {"tenant": ".."}], "entry 1: tenant must be"),
        ([ENTRY | {"token": TOKEN}], "entry 1 needs one of token_sha256 and token"),
        ([{"tenant": "a", "role": "viewer"}], "entry 1 needs one of token_sha256 and token"),
        ([ENTRY | {"token_sha256": "abc"}], "entry 1: token_sha256 must be 64 hexadecimal digits"),
        ([{"tenant": "a", "role": "viewer", "token": "secret"}], "entry 1: token must be a text of at least 16"),
        ([{"tenant": "a", "role": "viewer", "token": 10**20}], "entry 1: token must be a text of at least 16"),
        ([ENTRY, ENTRY | {"tenant": "b"}], "two entries have the same token"),
    ],
)
def test_a_wrong_tokens_file_is_one_line_without_a_token(tokens, rows, words):
    with pytest.raises(BadRequest, match=words) as caught:
        TokenFile(tokens(rows))
    line = str(caught.value)
    assert "\n" not in line
    assert not any(secret in line for secret in ("secret", TOKEN, SHA, str(10**20)))


def test_a_tokens_file_that_is_not_there_says_how_to_make_one(tmp_path):
    with pytest.raises(BadRequest, match=r"No such file or directory; `riverrun tokens new` makes one"):
        TokenFile(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("mode", "plain", "words"),
    [
        (0o644, True, "holds plain tokens and can be read by everybody: chmod 600"),
        (0o644, False, ""),
        (0o640, True, ""),
        (0o622, False, "can be written by everybody"),
    ],
)
def test_who_may_read_a_tokens_file(tokens, mode, plain, words):
    rows = [{"tenant": "a", "role": "viewer", "token": TOKEN} if plain else ENTRY]
    path = tokens(rows, mode)
    if words:
        with pytest.raises(BadRequest, match=words):
            TokenFile(path)
    else:
        TokenFile(path).find(TOKEN)


def test_a_changed_file_counts_at_once_and_a_wrong_one_changes_nothing(tokens, caplog):
    path = tokens([ENTRY])
    file = TokenFile(path)
    tokens([ENTRY, {"tenant": "b", "role": "viewer", "token": OTHER}])
    assert file.find(OTHER).tenant == "b"
    tokens("nonsense")
    assert file.find(OTHER).tenant == "b"
    path.unlink()
    assert file.find(TOKEN).tenant == "acme"
    told = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert [line.startswith("the tokens stay as they were: tokens file") for line in told] == [True, True]
    tokens([{"tenant": "b", "role": "viewer", "token": OTHER}])
    with pytest.raises(Unauthenticated):
        file.find(TOKEN)


# ---- callers ----


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], ""),
        (["Bearer x"], "x"),
        (["bearer  x "], "x"),
        *((v, None) for v in (["x"], ["Basic x"], ["Bearer "], [""])),
    ],
)
def test_the_bearer_token_of_a_call(values, expected):
    metadata = (("other", "Bearer y"), *(("authorization", value) for value in values))
    if expected is None:
        with pytest.raises(Unauthenticated, match="must be sent once, as `Bearer TOKEN`"):
            bearer(metadata)
    else:
        assert bearer(metadata) == expected
    with pytest.raises(Unauthenticated):
        bearer((("authorization", "Bearer x"), ("authorization", "Bearer y")))


def test_an_open_service_asks_nobody():
    callers = Callers(ServiceConfig())
    assert callers.identify((("authorization", "nonsense"),), {}) is ANYBODY
    assert ANYBODY.sees("acme")


def test_a_certificate_says_who_calls_only_where_one_was_asked_for(tokens, tmp_path):
    authority = Authority(tmp_path)
    own, client = authority.sign("service"), authority.sign("wall", "acme", "viewer")
    peer = {"x509_pem_cert": [client.cert.read_bytes()]}
    files = TlsConfig(str(own.cert), str(own.key), str(authority.path))
    both = Callers(ServiceConfig(auth=AuthConfig(str(tokens([ENTRY]))), tls=files))
    assert both.identify((), peer) == Principal("acme", Role.VIEWER, "wall")
    assert both.identify((("authorization", f"Bearer {TOKEN}"),), peer).role is Role.CONTROLLER
    with pytest.raises(Unauthenticated):
        both.identify((("authorization", f"Bearer {OTHER}"),), peer)
    unasked = Callers(ServiceConfig(auth=AuthConfig(str(tokens([ENTRY])))))
    with pytest.raises(Unauthenticated, match="no token: send metadata"):
        unasked.identify((), peer)


@pytest.mark.parametrize(
    ("tenant", "role", "words"),
    [
        ("", "viewer", "must have one CN"),
        ("acme", "", "must have one CN"),
        ("acme", ["viewer", "admin"], "must have one CN"),
        ("acme", "king", "role must be viewer, controller, admin, got 'king'"),
        ("acme,OU=admin", "viewer", "tenant must be"),
        ("../x", "viewer", "tenant must be"),
    ],
)
def test_subjects_that_say_nothing_or_too_much(tmp_path, tenant, role, words):
    pem = Authority(tmp_path).sign("x", tenant, role).cert.read_bytes()
    with pytest.raises(Unauthenticated, match=words) as caught:
        subject_of(pem)
    assert "\n" not in str(caught.value)


# ---- roles ----


def test_every_method_has_a_role_and_a_new_one_takes_an_admin():
    methods = {f"{s.name}/{m.name}" for s in pb.DESCRIPTOR.services_by_name.values() for m in s.methods}
    assert set(NEEDED) - methods == set()
    assert needed("/riverrun.v1.Sessions/Get") is Role.VIEWER
    assert needed("/riverrun.v1.Sessions/Create") is Role.CONTROLLER
    assert needed("/riverrun.v1.Cluster/Drain") is Role.ADMIN
    assert needed("/riverrun.v1.Cluster/Upgrade") is Role.ADMIN
    assert needed("/riverrun.v1.Cluster/Freeze") is Role.ADMIN
    assert needed("/riverrun.v1.Cluster/Why") is Role.ADMIN
    assert needed("/riverrun.v1.Nothing/New") is Role.ADMIN
    assert needed("/other.v1.Sessions/Get") is Role.ADMIN
    assert needed(f"/{health.SERVICE_NAME}/Check") is None
    assert needed(f"/{reflection.SERVICE_NAME}/ServerReflectionInfo") is Role.VIEWER


def test_what_a_role_sees():
    for role in (Role.VIEWER, Role.CONTROLLER):
        who = Principal("acme", role)
        assert (who.sees("acme"), who.sees("other"), who.sees(""), who.scope) == (True, False, False, "acme")
    admin = Principal("acme", Role.ADMIN)
    assert (admin.sees("other"), admin.scope) == (True, None)


# ---- what a service asks of its configuration ----


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], ""),
        (["host=0.0.0.0", "jobs_dir=/x"], "host 0.0.0.0 is reached by others, and nobody is asked who they are"),
        (["host=0.0.0.0", "jobs_dir=/x", "auth.allow_open=true"], ""),
        (["host=0.0.0.0", "jobs_dir=/x", "tls.cert=CERT", "tls.key=KEY"], "nobody is asked"),
        (["host=0.0.0.0", "jobs_dir=/x", "auth.tokens_file=TOKENS"], ""),
        (["host=0.0.0.0", "jobs_dir=/x", "tls.cert=CERT", "tls.key=KEY", "tls.client_ca=CA"], ""),
        (["auth.tokens_file=TOKENS"], "jobs_dir must be set: each tenant's jobs write into a folder of its own"),
        (["auth.tokens_file=/none", "jobs_dir=/x"], "tokens file /none: No such file"),
        (["tls.cert=CERT"], "tls.cert and tls.key go together"),
        (["tls.client_ca=CA"], "tls.client_ca needs tls.cert and tls.key"),
        (["tls.cert=CERT", "tls.key=/none"], "tls.key: /none: No such file"),
        (["tls.cert=CERT", "tls.key=OTHER"], "is not the key of the certificate"),
        (["tls.cert=KEY", "tls.key=KEY"], "holds no certificate in PEM"),
        (["tls.cert=CERT", "tls.key=CERT"], "holds no private key in PEM"),
        (["tls.cert=CERT", "tls.key=KEY", "tls.client_ca=KEY", "jobs_dir=/x"], "holds no certificate in PEM"),
        (["auth.tenants={a b: {}}"], "tenant 'a b' must be"),
        (["auth.tenants={a: {session: 1}}"], "unknown key 'auth.tenants.a.session'"),
        (["auth.tenants={a: {sessions: -1}}"], "sessions must not be negative"),
        (["auth.tenants={a: {frames_per_s: 0}}"], "frames_per_s must be finite and above 0"),
        (["auth.tenants={a: {frames_per_s: nan}}"], "frames_per_s must be finite and above 0"),
    ],
)
def test_what_is_refused_before_anything_is_started(tokens, tmp_path, overrides, words):
    authority = Authority(tmp_path)
    own, other = authority.sign("service"), authority.sign("other")
    files = {"CERT": own.cert, "KEY": own.key, "OTHER": other.key, "CA": authority.path, "TOKENS": tokens([ENTRY])}
    given = []
    for override in overrides:
        key, _, value = override.partition("=")
        given.append(f"{key}={files.get(value, value)}")
    if not words:
        check_trust(load_service(None, given))
        return
    with pytest.raises(BadRequest, match=words) as caught:
        check_trust(load_service(None, given))
    assert "\n" not in str(caught.value)


def test_the_clusters_configuration_asks_for_tokens():
    config = load_service("cluster")
    assert (config.is_exposed, config.is_open, config.auth.allow_open) == (True, False, False)


def test_a_renewed_certificate_is_taken_and_a_wrong_one_is_not(tmp_path, caplog):
    authority = Authority(tmp_path)
    own = authority.sign("service")
    files = CertificateFiles(TlsConfig(str(own.cert), str(own.key)))
    assert files.changed() is None
    authority.sign("service")
    assert files.changed() is not None
    assert files.changed() is None
    os.truncate(own.key, 0)
    assert files.changed() is None
    assert "the certificates stay as they were: tls.key" in caplog.text


# ---- quotas ----


class FakeClock:
    """slept: every wait. Time goes by in waits alone, and by hand."""

    def __init__(self) -> None:
        self.time, self.slept = 1000.0, []

    def now(self):
        return self.time

    async def sleep(self, seconds):
        self.slept.append(round(seconds, 6))
        self.time += seconds


class NeverClock(FakeClock):
    """No wait on it ends."""

    async def sleep(self, seconds):
        await asyncio.Event().wait()


def test_a_pace_lets_a_burst_go_and_then_the_rate():
    async def body():
        clock = FakeClock()
        pace = Pace(4.0, clock)
        for _ in range(25):
            await pace.take()
        assert clock.time - 1000.0 == pytest.approx(25 / 4 - BURST_S - 1 / 4)
        clock.time += 100  # a pause gives one burst, not the frames of a hundred seconds
        clock.slept.clear()
        for _ in range(5):
            await pace.take()
        assert clock.slept == []
        await pace.take()
        assert clock.slept == [0.25]

    asyncio.run(body())


def test_a_turn_that_is_not_taken_goes_back():
    async def body():
        clock = NeverClock()
        pace = Pace(1.0, clock)
        for _ in range(2):
            await pace.take()
        waiting = [asyncio.create_task(pace.take()) for _ in range(3)]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        clock.time += 1.0
        await asyncio.wait_for(pace.take(), 10)

    asyncio.run(body())


def test_quotas_by_name_for_everybody_else_and_for_nobody():
    config = AuthConfig(tenants={"acme": Quota(2, 8.0), "*": Quota(1)})
    assert (config.quota("acme").sessions, config.quota("b").sessions, config.quota("").sessions) == (2, 1, None)
    quotas = Quotas(config, FakeClock())
    assert quotas.pace("acme") is quotas.pace("acme")
    assert quotas.pace("acme") is not quotas.pace("b")
    assert quotas.pace("b") is quotas.pace("")
    assert AuthConfig().quota("acme") == Quota()
