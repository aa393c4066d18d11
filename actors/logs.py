"""Log lines of a service and its actors, in one form: text for people, or JSON for machines.

What a line is about is given as `extra`, by the names in `FIELDS`; other extras are left out, so that nothing gets into
a log by accident. Prompts, parameters and tokens are never logged at info or above.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from riverrun.configs.telemetry import LogConfig

FIELDS = ("session", "stage", "seq", "epoch", "tenant", "graph", "actor", "incarnation")


def about(key: str, **more: Any) -> dict[str, Any]:
    """`extra` for a session as a stage actor knows it, "session/stage"."""
    session, _, stage = key.partition("/")
    return {"session": session, "stage": stage, **more}


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What a record says it is about; what it leaves open is left out."""
    found = {name: getattr(record, name, None) for name in FIELDS}
    return {name: value for name, value in found.items() if value not in (None, "")}


class JsonFormatter(logging.Formatter):
    """One object a line: time (RFC 3339, UTC), level, logger, message, pid, the fields, and the traceback if any."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
            **fields_of(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """`12:30:01.250 info riverrun.actors.host: message [session=… stage=…]`, and the traceback below."""

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{name}={value}" for name, value in fields_of(record).items())
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        line = f"{time} {record.levelname.lower()} {record.name}: {record.getMessage()}"
        line += f" [{fields}]" if fields else ""
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def set_up(log: LogConfig) -> None:
    """Everything this process logs goes to stderr in the form and from the level that `log` says.

    For processes that are the service's own; inside somebody's program, logging is that program's to set up.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log.format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    level = logging.getLevelNamesMapping()[log.level.upper()]
    root.setLevel(max(level, logging.INFO))
    logging.getLogger("riverrun").setLevel(level)


def pass_on(log: LogConfig) -> None:
    """What Ray collects from the actors' stderr comes out of this process's as it was written, where that is JSON: Ray
    would put "(StageActor pid=…)" before each line. To be called once Ray is up."""
    if log.format != "json":
        return
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    dispatcher.remove_handler("ray_print_logs")
    dispatcher.add_handler("riverrun", _print_lines)


def _print_lines(data: Mapping[str, Any]) -> None:
    if data.get("pid") == "autoscaler":  # its log of every few seconds, which Ray leaves out too
        return
    for line in data.get("lines", ()):
        print(as_json(line, data.get("pid")), file=sys.stderr, flush=True)


def as_json(line: str, pid: Any) -> str:
    """A line of another process: as it is if it is JSON, else (a library that prints) as the message of an object."""
    if line.startswith("{") and line.rstrip().endswith("}"):
        return line
    return json.dumps({"level": "info", "logger": "stderr", "message": line, "pid": pid or os.getpid()})
