"""What `riverrun doctor` looks at: each check is a function that returns what it found."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import re
import shutil
import socket
from pathlib import Path

import riverrun
from riverrun.client.doctor_blobs import checkpoints
from riverrun.client.doctor_store import store
from riverrun.client.doctor_trust import callers, certificates, exposure, metrics
from riverrun.client.finding import Finding
from riverrun.configs import ServiceConfig, load_model
from riverrun.models.base import BadRequest

GIB = 2**30
NEEDED_MEMORY, NEEDED_SHM = 2 * GIB, 256 << 20
"""Ray's processes take about 0.9 GiB, a worker with torch about 0.5 GiB; the embedded Ray's object store is in shm."""


def examine(config: ServiceConfig) -> list[Finding]:
    """Every check for a service of this configuration. Starts and stops an embedded store; changes nothing."""
    return [
        python(),
        torch(),
        flash_attention(),
        ray(),
        *store(config),
        *checkpoints(config),
        h264(),
        memory(),
        shared_memory(),
        *map(weights, config.models),
        port(config),
        exposure(config),
        *callers(config),
        *certificates(config),
        *metrics(config),
        jobs_dir(config),
    ]


def python() -> Finding:
    return Finding("Python", "ok", platform.python_version())  # an older one could not have imported this


def torch() -> Finding:
    version = _version("torch")
    if version is None:
        return Finding("torch", "missing", "not installed", "pip install 'torch>=2.9,<2.14'")
    import torch as module

    if not module.cuda.is_available():
        return Finding("torch", "ok", f"{version}, no CUDA", "models run on the CPU: fine for the tiny ones")
    names = {module.cuda.get_device_name(i) for i in range(module.cuda.device_count())}
    return Finding("torch", "ok", f"{version}, {module.cuda.device_count()} x {', '.join(sorted(names))}")


def flash_attention() -> Finding:
    version = _version("flash-attn")
    if version:
        return Finding("flash-attn", "ok", version)
    import torch as module

    if module.cuda.is_available():
        return Finding("flash-attn", "note", "not installed", "pip install 'riverrun[gpu]'; torch's attention is used")
    return Finding("flash-attn", "ok", "not installed; of no use without CUDA")


def ray() -> Finding:
    version = _version("ray")
    if version is None:
        return Finding("Ray", "missing", "not installed", "pip install 'ray[default]>=2.50,<3'")
    return Finding("Ray", "ok", version)


def h264() -> Finding:
    import av

    try:
        av.codec.Codec("libx264", "w")
    except (ValueError, av.error.FFmpegError):
        return Finding("H.264", "missing", f"PyAV {av.__version__} without libx264", "pip install av (a wheel has it)")
    return Finding("H.264", "ok", f"PyAV {av.__version__}, libx264")


def memory() -> Finding:
    free = _meminfo("MemAvailable")
    if free is None:
        return Finding("memory", "note", "can't be read on this system", f"{NEEDED_MEMORY / GIB:.0f} GiB are needed")
    state = "ok" if free >= NEEDED_MEMORY else "note"
    advice = "" if state == "ok" else f"Ray and one model want {NEEDED_MEMORY / GIB:.0f} GiB"
    return Finding("memory", state, f"{free / GIB:.1f} GiB available", advice)


def shared_memory() -> Finding:
    if not Path("/dev/shm").is_dir():
        return Finding("/dev/shm", "note", "not there", "Ray puts its object store on disk, which is slow")
    free = shutil.disk_usage("/dev/shm").free
    if free >= NEEDED_SHM:
        return Finding("/dev/shm", "ok", f"{free / GIB:.1f} GiB free")
    return Finding("/dev/shm", "note", f"{free / 2**20:.0f} MiB free", "in a container: --shm-size=2g")


def weights(model: str) -> Finding:
    """The files of the package that a model names: there, and with a sha256 that one of the cards beside them tells."""
    what = f"model {model}"
    try:
        args = load_model(model).args
    except BadRequest as error:
        return Finding(what, "missing", str(error), "give its YAML's path, or leave it out of `models`")
    root = Path(riverrun.__file__).parent
    files = [root / v.removeprefix("package:") for v in args.values() if str(v).startswith("package:")]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        return Finding(what, "missing", f"no {absent[0]} in the package", "install the package again")
    tensors = [file for file in files if file.suffix == ".safetensors"]
    changed = [file.name for file in tensors if _digest(file) not in _carded(file.parent)]
    if changed:
        return Finding(what, "note", f"{changed[0]} is not one a card tells of", "trained here? else install again")
    return Finding(what, "ok", ", ".join(f"{file.name} {_digest(file)[:12]}" for file in tensors) or "needs no weights")


def port(config: ServiceConfig) -> Finding:
    """Whether the service could listen."""
    what = f"port {config.port}"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            return Finding(what, "note", f"{config.host}: {error.strerror}", "a service runs there? else set port=...")
    return Finding(what, "ok", f"free on {config.host}")


def jobs_dir(config: ServiceConfig) -> Finding:
    """Where jobs write: any client may say where, so a service that others reach must keep them to a folder."""
    if config.jobs_dir:
        return Finding("jobs_dir", "ok", f"jobs write only below {Path(config.jobs_dir).expanduser()}")
    if config.is_exposed or not config.is_open:
        others = f"{config.host} is open" if config.is_exposed else "each tenant's jobs want a folder"
        return Finding("jobs_dir", "missing", f"not set, and {others}", "set jobs_dir=FOLDER")
    return Finding("jobs_dir", "ok", "not set: jobs write wherever a client says, as the user the service runs as")


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _meminfo(key: str) -> int | None:
    path = Path("/proc/meminfo")
    found = re.search(rf"^{key}:\s+(\d+) kB", path.read_text(), re.M) if path.is_file() else None
    return int(found[1]) * 1024 if found else None


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _carded(folder: Path) -> set[str]:
    """The sha256 sums that the model cards of a folder tell."""
    return {digest for card in folder.glob("*.md") for digest in re.findall(r"\b[0-9a-f]{64}\b", card.read_text())}
