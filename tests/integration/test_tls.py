"""TLS through the real port: who shows a certificate and who does not, and one that is renewed."""

import socket
import ssl

import pytest

import riverrun
from riverrun.client.types import Patience
from riverrun.tests.certificates import Authority

from .conftest import eventually
from .guarded import TIMEOUT_S, TOKENS, guarded


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pki")
    authority = Authority(folder)
    authority.sign("service")
    return folder, authority


@pytest.fixture(scope="module")
def secured(running, tmp_path_factory, pki):
    folder, authority = pki
    files = [f"tls.cert={folder}/service.pem", f"tls.key={folder}/service.key", f"tls.client_ca={authority.path}"]
    with guarded(running, tmp_path_factory.mktemp("secured"), "ray_address=local", *files) as service:
        yield service


def connected(secured, ca, signed=None, token="", **options):
    own = (signed.cert, signed.key) if signed else ("", "")
    tls = riverrun.Tls(ca, *own) if ca else False
    patience = Patience(reconnect=TIMEOUT_S, first_wait=0.01, longest_wait=0.05)
    return riverrun.connect(secured.address, patience, token=token, tls=tls)


def test_a_certificate_says_who_calls(secured, pki):
    _, authority = pki
    ann = authority.sign("ann", "acme", "controller")
    with connected(secured, authority.path, ann) as rr, rr.stream("synthetic", frames=4) as stream:
        assert len(list(stream)) == 4
    with (
        connected(secured, authority.path, authority.sign("wall", "acme", "viewer")) as rr,
        pytest.raises(riverrun.Denied, match="yours is viewer"),
    ):
        rr.stream("synthetic")
    with connected(secured, authority.path, authority.sign("wall", "acme", "viewer"), TOKENS["bob"]) as rr:
        assert rr.sessions() == []
        assert rr.status().version
    nobody = authority.sign("nobody")
    with connected(secured, authority.path, nobody) as rr, pytest.raises(riverrun.Denied, match="must have one CN"):
        rr.sessions()


def test_who_shows_no_certificate_or_a_strangers_gets_one_line(secured, pki, tmp_path):
    _, authority = pki
    stranger = Authority(tmp_path, "stranger")
    expired = authority.sign("late", "acme", "admin", days=-1)
    wrong = [
        (authority.path, None, TOKENS["root"]),
        (authority.path, stranger.sign("eve", "acme", "admin"), ""),
        (authority.path, expired, ""),
        (stranger.path, authority.sign("ann", "acme", "controller"), ""),
        (None, None, TOKENS["root"]),
    ]
    said = []
    for ca, signed, token in wrong:
        with connected(secured, ca, signed, token) as rr, pytest.raises(riverrun.Unavailable) as caught:
            rr.sessions()
        said.append(str(caught.value).replace(secured.address, "HERE"))
    hung_up = "what answers at HERE hung up: it wants TLS, or a certificate that it knows (ca, cert, key)"
    assert said[:3] == [hung_up] * 3
    assert said[3] == "no TLS with the service at HERE: unable to get local issuer certificate"
    assert said[4] == hung_up


def test_a_renewed_certificate_is_shown_to_new_connections(secured, pki):
    _, authority = pki
    ann = authority.sign("ann", "acme", "controller")
    port = int(secured.address.rpartition(":")[2])

    def shown():
        return shown_to_all(port, authority.path, ann)

    before = shown()
    with connected(secured, authority.path, ann) as rr, rr.stream("synthetic") as stream:
        next(stream)
        authority.sign("service")
        assert eventually(lambda: shown() != before, TIMEOUT_S)
        for _ in range(64):
            next(stream)
        assert stream.reconnects == 0


def shown_to_all(port, ca, signed):
    """The certificate that the service shows to a new connection."""
    context = ssl.create_default_context(cafile=str(ca))
    context.load_cert_chain(signed.cert, signed.key)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as wrapped,
    ):
        return wrapped.getpeercert(binary_form=True)
