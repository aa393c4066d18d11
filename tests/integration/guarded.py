"""A service that asks who calls, and the people it knows."""

import contextlib
import hashlib
import json
from pathlib import Path

import grpc

import riverrun
from riverrun.configs import load_service
from riverrun.protos import riverrun_pb2 as pb

from .conftest import Running, Stubs

TIMEOUT_S = 90
PEOPLE = {
    "ann": ("acme", "controller"),
    "wall": ("acme", "viewer"),
    "bob": ("bird", "controller"),
    "cat": ("cats", "controller"),
    "root": ("ops", "admin"),
}
TOKENS = {name: f"token-of-{name}-0123456789" for name in PEOPLE}
ROWS = [
    {"name": n, "tenant": t, "role": r, "token_sha256": hashlib.sha256(TOKENS[n].encode()).hexdigest()}
    for n, (t, r) in PEOPLE.items()
]
QUOTAS = "auth.tenants={bird: {sessions: 2}, cats: {frames_per_s: 8}}"
FRAMES = [pb.PortWish(port="frames", credits=500)]


class Bearer:
    """A channel whose calls carry a token: written here by hand, since the service must not lean on our client."""

    def __init__(self, channel, token):
        self._channel, self._metadata = channel, (("authorization", f"Bearer {token}"),) if token else ()

    def __getattr__(self, kind):
        def made(*about, **more):
            call = getattr(self._channel, kind)(*about, **more)
            return lambda request, timeout=TIMEOUT_S: call(request, timeout=timeout, metadata=self._metadata)

        return made


class Guarded:
    """A service that asks for tokens. stubs: by the name of who calls, and by anything else as the token itself."""

    def __init__(self, service, channel):
        self.service, self.address, self.channel = service, service.address, channel

    def stubs(self, who):
        return Stubs(Bearer(self.channel, TOKENS.get(who, who)))

    @contextlib.contextmanager
    def client(self, who, **options):
        with riverrun.connect(self.address, token=TOKENS.get(who, who), **options) as rr:
            yield rr


@contextlib.contextmanager
def guarded(running, folder: Path, *overrides):
    """A service beside the folder's own, on its store."""
    (folder / "tokens.json").write_text(json.dumps(ROWS))
    fixed = ["port=0", f"redis_url={running.service.store_url}", "drain_s=0.2", "models=[synthetic]"]
    ours = [f"auth.tokens_file={folder}/tokens.json", f"jobs_dir={folder}/jobs", QUOTAS]
    service = Running(load_service(None, [*fixed, *ours, *overrides]))
    service.start()
    try:
        with grpc.insecure_channel(service.service.address) as channel:
            yield Guarded(service.service, channel)
    finally:
        service.stop()
