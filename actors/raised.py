"""Errors on their way to another process, which may not have the package that a model comes from."""

from __future__ import annotations

from riverrun.models.base import BadRequest, Corrupt, Unavailable

OURS = "riverrun."


def portable(error: Exception) -> Exception:
    """The error itself, if its class is ours; else one of ours that says the same."""
    known = next(each for each in type(error).__mro__ if each is Exception or each.__module__.startswith(OURS))
    if known is type(error):
        return error
    if issubclass(known, BadRequest | Unavailable | Corrupt):
        return known(str(error))
    return Corrupt(f"{type(error).__name__}: {error}")
