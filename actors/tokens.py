"""The tokens a service takes: a file with a list of entries, read again whenever it has changed.

    - {name: render, tenant: acme, role: controller, token_sha256: 9f86d0…}     (hex, of the token's bytes)
    - {name: wall,   tenant: acme, role: viewer,     token: …}                  (plain: the file must be kept private)

`riverrun tokens new` makes a token and its entry. Only digests stay in memory.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from riverrun.actors.errors import Unauthenticated
from riverrun.actors.principal import Principal, principal
from riverrun.models.base import BadRequest

log = logging.getLogger(__name__)
FIELDS = {"name", "tenant", "role", "token", "token_sha256"}
MIN_TOKEN = 16
"""Characters of a plain token: a shorter one can be guessed."""


@dataclass(frozen=True)
class Entry:
    """digest: sha256 of the token."""

    digest: bytes
    who: Principal


class TokenFile:
    """The callers that a file names. Raises BadRequest, at first, for what is wrong with it."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path).expanduser()
        self._seen = self._look()
        self._entries = read_tokens(self._path)

    def find(self, token: str) -> Principal:
        """Raises Unauthenticated. Takes as long for a wrong token as for a right one."""
        self._refresh()
        digest = digest_of(token)
        found = [entry.who for entry in self._entries if hmac.compare_digest(entry.digest, digest)]
        if not found:
            raise Unauthenticated("the token is none of this service's; it may have been revoked")
        return found[0]

    def _refresh(self) -> None:
        """Takes a changed file. One that is wrong, or gone, leaves things as they were, and is told of once."""
        try:
            seen = self._look()
            if seen == self._seen:
                return
            self._seen = seen
            self._entries = read_tokens(self._path)
            log.info("%s has changed: %d tokens are taken", self._path, len(self._entries))
        except BadRequest as error:
            log.warning("the tokens stay as they were: %s", error)

    def _look(self) -> tuple[int, ...]:
        try:
            about = self._path.stat()
        except OSError:
            return ()
        return (about.st_ino, about.st_size, about.st_mtime_ns, about.st_mode)


def digest_of(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def read_tokens(path: Path) -> tuple[Entry, ...]:
    """Raises BadRequest with a line that names the file and the entry, and never a token."""
    try:
        with path.open() as opened:
            mode = os.fstat(opened.fileno()).st_mode
            rows = yaml.safe_load(opened)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise BadRequest(f"tokens file {path}: {why}; `riverrun tokens new` makes one") from None
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ):  # a date of month 13 is a ValueError; its text would show what stands there
        raise BadRequest(f"tokens file {path} is neither YAML nor JSON") from None
    if not isinstance(rows, list) or not rows:
        raise BadRequest(f"tokens file {path} must hold a list of entries with tenant, role and token_sha256")
    _check_mode(path, mode, plain=any(isinstance(row, dict) and "token" in row for row in rows))
    entries = tuple(_entry(row, f"tokens file {path}, entry {number}") for number, row in enumerate(rows, start=1))
    if len({entry.digest for entry in entries}) < len(entries):
        raise BadRequest(f"tokens file {path}: two entries have the same token")
    return entries


def _check_mode(path: Path, mode: int, plain: bool) -> None:
    if mode & stat.S_IWOTH:
        raise BadRequest(f"tokens file {path} can be written by everybody: chmod 600 {path}")
    if plain and mode & stat.S_IROTH:
        raise BadRequest(f"tokens file {path} holds plain tokens and can be read by everybody: chmod 600 {path}")


def _entry(row: Any, where: str) -> Entry:
    if not isinstance(row, Mapping):
        raise BadRequest(f"{where} must have tenant, role and token_sha256")
    if unknown := sorted(str(key) for key in row if key not in FIELDS):
        raise BadRequest(f"{where}: unknown key {unknown[0]!r}; there are {', '.join(sorted(FIELDS))}")
    try:
        who = principal(row.get("tenant"), row.get("role"), row.get("name", ""))
    except BadRequest as error:
        raise BadRequest(f"{where}: {error}") from None
    return Entry(_digest(row, where), who)


def _digest(row: Mapping[str, Any], where: str) -> bytes:
    token, digest = row.get("token"), row.get("token_sha256")
    if (token is None) == (digest is None):
        raise BadRequest(f"{where} needs one of token_sha256 and token")
    if token is not None:
        if not isinstance(token, str) or len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable():
            raise BadRequest(f"{where}: token must be a text of at least {MIN_TOKEN} ASCII characters (in quotes)")
        return digest_of(token)
    if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        raise BadRequest(f"{where}: token_sha256 must be 64 hexadecimal digits (in quotes)")
    return bytes.fromhex(digest)
