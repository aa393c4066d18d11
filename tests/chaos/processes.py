"""Processes of a chaos run: all are descendants of this one, orphans too, so that none can be left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

import psutil

_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """What a killed process leaves behind becomes a child of this one."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def find(title: str) -> list[psutil.Process]:
    """Descendants whose command line begins so, as Ray titles its actors."""
    found = []
    for process in descendants():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and (process.cmdline() or [""])[0].startswith(title):
                found.append(process)
    return found


def kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def tree(pid: int) -> list[int]:
    """The process and all below it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [pid, *(child.pid for child in process.children(recursive=True))]
    return []


def end_all() -> None:
    """Kills every descendant, until there is none."""
    while left := descendants():
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGCONT)  # a stopped one
                process.kill()
        psutil.wait_procs(left, timeout=5)
        reap()


def reap() -> None:
    """Takes orphans that have ended off the table."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


SLOWEST = 5.0


def _load() -> float:
    """Processes that want to run, for each core."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


class Stopwatch:
    """Counts seconds as a machine with nothing else to do would: one that has three processes for each core gets a
    third of a second done in one. So a deadline tells what hangs from what is only slow. More than `SLOWEST` times
    slower it is not taken for."""

    def __init__(self) -> None:
        self._at, self._seconds = time.monotonic(), 0.0

    def read(self) -> float:
        now = time.monotonic()
        self._seconds += (now - self._at) / min(SLOWEST, max(1.0, _load()))
        self._at = now
        return self._seconds


def until(what: Callable[[], Any], seconds: float, why: str) -> Any:
    """The first truthy value of `what()`. seconds: by a `Stopwatch`. Raises TimeoutError naming `why`."""
    watch = Stopwatch()
    while not (value := what()):
        if watch.read() > seconds:
            raise TimeoutError(f"after {seconds:g} s still not: {why}")
        time.sleep(0.05)
    return value


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
