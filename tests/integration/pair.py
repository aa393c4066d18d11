"""Two gateways of one cluster over two actors of one model: what must survive runs on these."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import grpc
import ray

from riverrun.configs import load_service

from .conftest import Running, Stubs, end_controller

PAIR = (
    "name: pair\nclass: riverrun.models.synthetic:Synthetic\nstage: generation\nactor: {count: 2, max_sessions: 16}\n"
)


@contextlib.contextmanager
def started(*overrides: str) -> Iterator[tuple[Running, Stubs]]:
    service = Running(load_service(None, ["port=0", "drain_s=0.2", *overrides]))
    service.start()
    try:
        with grpc.insecure_channel(service.service.address) as channel:
            yield service, Stubs(channel)
    finally:
        service.stop()


@contextlib.contextmanager
def two_gateways(folder: Path, graphs: Mapping[str, str], *overrides: str) -> Iterator[list[tuple[Running, Stubs]]]:
    """The same controller, actors, store and checkpoints (in `folder`/checkpoints). graphs: YAML without its name."""
    (folder / "pair.yaml").write_text(PAIR)
    for name, text in graphs.items():
        (folder / f"{name}.yaml").write_text(f"name: {name}\n{text}")
    files = ",".join(f"{folder}/{name}.yaml" for name in graphs)
    common = [f"ray_address={ray.get_runtime_context().gcs_address}", f"checkpoints.uri={folder}/checkpoints"]
    common += ["checkpoints.chunks=3", *overrides]
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(started(f"models=[{folder}/pair.yaml]", f"graphs=[{files}]", *common))
        redis = f"redis_url={one[0].service.store_url}"
        yield [one, stack.enter_context(started("models=[]", redis, *common))]
        end_controller()
