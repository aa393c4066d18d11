"""A Ray cluster on this machine whose nodes really come and go: Ray's own autoscaler over its `fake_multinode`
provider, which starts a raylet for each node it is asked for, and ends it when the node has been idle. What a node has
beside its (no) processors is declared, not there."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from .conftest import eventually

HEAD = "f" * 51 + "00000"
STORE_BYTES = 100 << 20
START_S = 120.0


class Autoscaled:
    """The head has `head` resources; nodes of `node` resources, at most `most` of them, are given back after `idle_s`.
    folder: of its logs and sockets; its path must be short."""

    def __init__(
        self, folder: Path, node: Mapping[str, float], head: Mapping[str, float], most: int, idle_s: float
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        config = folder / "autoscaler.json"
        config.write_text(json.dumps(_config(self.address, node, most, idle_s)))
        command = [Path(sys.executable).parent / "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1"]
        command += [f"--port={port}", f"--autoscaling-config={config}", "--num-cpus=0", f"--temp-dir={folder / 'ray'}"]
        command += [f"--object-store-memory={STORE_BYTES}", f"--resources={json.dumps(dict(head))}"]
        command += ["--include-dashboard=false", "--disable-usage-stats"]
        fake = {"RAY_FAKE_CLUSTER": "1", "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD, "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        fake |= {"RAY_AUTH_MODE": "disabled"}  # as of a Ray that is started inside a process
        self._log = (folder / "head.log").open("w")
        self._head = subprocess.Popen(command, env={**os.environ, **fake}, stdout=self._log, stderr=self._log)

    def wait(self) -> None:
        """Returns when it takes connections."""
        host, _, port = self.address.partition(":")

        def takes_connections() -> bool:
            assert self._head.poll() is None, Path(self._log.name).read_text()
            with suppress(OSError), socket.create_connection((host, int(port)), 1):
                return True
            return False

        eventually(takes_connections, START_S)

    def raylets(self) -> int:
        """Nodes that there are, the head's among them."""
        family = psutil.Process(self._head.pid).children(recursive=True)
        return sum(_name(process) == "raylet" for process in family)

    def stop(self) -> None:
        """Ends the head and all its nodes."""
        assert self._head.poll() is None, Path(self._log.name).read_text()
        ours = [psutil.Process(self._head.pid), *psutil.Process(self._head.pid).children(recursive=True)]
        for process in ours:
            try:
                process.terminate()
            except psutil.NoSuchProcess:
                continue
        _, left = psutil.wait_procs(ours, timeout=10)
        for process in left:
            process.kill()
        self._head.wait(10)
        self._log.close()


def _name(process: psutil.Process) -> str:
    try:
        return "" if process.status() == psutil.STATUS_ZOMBIE else process.name()
    except psutil.NoSuchProcess:
        return ""


def _config(address: str, node: Mapping[str, float], most: int, idle_s: float) -> dict[str, object]:
    """As `ray.autoscaler._private.fake_multi_node` wants it."""
    off: tuple[str, ...] = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
    off += ("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude")
    sizes = {"CPU": 0, "object_store_memory": STORE_BYTES}
    return {
        "cluster_name": "local",
        "max_workers": most,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,  # they all have the same one
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": address,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {**sizes, **node},
                "node_config": {},
                "min_workers": 0,
                "max_workers": most,
            },
        },
        "head_node_type": "ray.head.default",
        "upscaling_speed": 100.0,
        "idle_timeout_minutes": idle_s / 60,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "rsync_filter": [],
        **{name: [] for name in off},
    }
