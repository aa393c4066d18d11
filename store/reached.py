"""Redis's errors become ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis.exceptions import RedisClusterException, RedisError, ResponseError

from riverrun.models.base import Unavailable, one_line


@contextmanager
def reached() -> Iterator[None]:
    """Raises Unavailable for what Redis raises inside."""
    try:
        yield
    except ResponseError as error:  # it answers: no memory left, a replica, not enough replicas
        raise Unavailable(f"the session store refuses: {one_line(str(error))}") from error
    except (RedisError, RedisClusterException, OSError) as error:
        raise Unavailable(f"the session store does not answer: {type(error).__name__}: {error}") from error
