"""From a model's configuration to the object: inside the actor's process, which alone imports what the model needs."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import logging
import operator
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import ray

from riverrun.actors.raised import portable
from riverrun.configs import ModelConfig
from riverrun.configs.telemetry import ActorSetup
from riverrun.models.base import BadRequest, Corrupt, StreamModel, Unavailable
from riverrun.store.checkpoints import Engine

log = logging.getLogger(__name__)
PACKAGE = Path(__file__).parent.parent
NAMESPACE = "riverrun-actors"
"""Of Ray's names of actors that outlive their controller."""
_INSIDE = "package:"
F = TypeVar("F", bound=Callable[..., Any])


def set_threads(count: int) -> None:
    """Threads for the maths libraries; before they are imported too, since Ray presets one."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


def print_to_stderr() -> None:
    """What a model prints goes to this process's stderr: Ray passes both on to the service's, and that one's stdout is
    for results."""
    os.dup2(2, 1)


def build(config: ModelConfig) -> Any:
    """The model (or encoder) that `config` names. Raises BadRequest saying which part of it is wrong.

    `class` may also name what makes one ("pkg.mod:Class.load").
    """
    if config.search_path and config.search_path not in sys.path:
        sys.path.insert(0, config.search_path)
    module, _, name = config.class_path.partition(":")
    try:
        make = operator.attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise BadRequest(f"model {config.name!r}: can't import {config.class_path!r}: {error}") from error
    try:
        model = make(**{key: _resolve(value) for key, value in config.args.items()})
    except (TypeError, ValueError, OSError) as error:
        raise BadRequest(f"model {config.name!r}: {error}") from error
    if config.stage == "encoder":
        if not callable(getattr(model, "encode", None)):
            raise BadRequest(f"model {config.name!r}: {config.class_path!r} has no method 'encode'")
    elif not isinstance(model, StreamModel):
        raise BadRequest(f"model {config.name!r}: {config.class_path!r} is no riverrun.models.base.StreamModel")
    return model


def engine_of(config: ModelConfig, model: StreamModel) -> Engine:
    """What a State of this model, here, can go on with."""
    dtype, backend = "", ""
    if model.dtype is not None:
        from riverrun.kernels.attention import backend_of  # a model without weights comes without torch

        dtype = str(model.dtype).removeprefix("torch.")
        backend = f"{model.device.type} {backend_of(model.device, model.dtype)}"
    return Engine(config.class_path, weights_digest(config), dtype, backend, config.actor.threads)


def weights_digest(config: ModelConfig) -> str:
    """Of the files that a model is made from: sha256 over their sizes and first and last mebibytes, hex; "" for none.

    Enough to tell two sets of weights apart, and read in no time whatever their size.
    """
    digest, found = hashlib.sha256(), False
    for key in sorted(config.args):
        path = Path(str(_resolve(config.args[key])))
        if isinstance(config.args[key], str) and path.is_file():
            found = True
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(0)
                digest.update(f"{key}:{size}:".encode() + file.read(1 << 20))
                file.seek(max(0, size - (1 << 20)))
                digest.update(file.read())
    return digest.hexdigest() if found else ""


def _resolve(value: Any) -> Any:
    """`package:weights/x.safetensors` becomes the path of that file in the installed package."""
    if isinstance(value, str) and value.startswith(_INSIDE):
        return str(PACKAGE / value.removeprefix(_INSIDE))
    return value


def carried(method: F) -> F:
    """For methods of Ray actors: what they raise can be read where it arrives (see `portable`)."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except (BadRequest, Unavailable, Corrupt) as error:
            if (told := portable(error)) is error:
                raise
            raise told from None
        except Exception as error:
            log.exception("%s failed", method.__name__)
            raise Corrupt(f"{method.__name__} failed: {type(error).__name__}: {error}") from None

    return call  # type: ignore[return-value]


def start_actor(
    cls: type,
    groups: dict[str, int],
    places: dict[str, str],
    setup: ActorSetup,
    config: ModelConfig,
    incarnation: str,
    name: str = "",
) -> ray.actor.ActorHandle:
    """A Ray actor of `cls`: threads by concurrency group, methods in group `control` unless `places` says another.
    name: it outlives whoever starts it, and is found by this; "": it ends with that one.

    Ray restarts neither it nor its calls (design §4). It counts no CPU, or it would pend for ever on a small machine.
    """
    for public in (public for public in vars(cls) if not public.startswith("_")):
        method = inspect.unwrap(getattr(cls, public))  # Ray looks for the group there, below decorators
        ray.method(concurrency_group=places.get(public, "control"))(method)
    limits = config.actor
    kept = {"name": name, "namespace": NAMESPACE, "lifetime": "detached"} if name else {}
    remote = ray.remote(
        concurrency_groups=groups,
        num_cpus=0,
        num_gpus=limits.num_gpus,
        resources=dict(limits.resources) or None,
        max_restarts=0,
        max_task_retries=0,
        **kept,
    )(cls)
    return remote.remote(config, incarnation, setup)
