"""What Ray's own exporter says of a real service, asked as Prometheus asks."""

import json
import urllib.request

import grpc
import ray
from prometheus_client.parser import text_string_to_metric_families

from riverrun.protos import riverrun_pb2 as pb

from .conftest import Stubs, eventually, serving


def samples():
    """Values by name and our own labels, over the nodes of this Ray."""
    found = {}
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(url, timeout=30) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        ours = {"graph", "stage", "part", "le", "port", "codec", "state", "actor", "model"}
        for sample in (s for family in families for s in family.samples):
            labels = {key: value for key, value in sample.labels.items() if key in ours}
            found[sample.name, json.dumps(labels, sort_keys=True)] = sample.value
    return found


def value(name, **labels):
    return samples().get((name, json.dumps(labels, sort_keys=True)), 0)


def test_figures_of_a_gateway_its_sessions_and_its_actors_come_out_of_rays_port():
    with serving("models=[synthetic]", "metrics_ray=true") as running:
        assert running.service.metrics_address == ""  # no port of our own
        with grpc.insecure_channel(running.service.address) as channel:
            stubs = Stubs(channel)
            session = stubs.create()
            stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=8)])
            assert len(stream.frames(8)) == 8
            labels = {"graph": "synthetic", "stage": "synthetic"}
            eventually(lambda: value("ray_riverrun_sessions", graph="synthetic", state="running") == 1)
            eventually(lambda: value("ray_riverrun_frames_total", **labels) >= 8)
            eventually(lambda: value("ray_riverrun_chunk_seconds_bucket", le="+Inf", part="compute", **labels) >= 2)
            assert value("ray_riverrun_actor_up", actor="synthetic-0", model="synthetic") == 1
            assert not [key for key in samples() if session.session_id in str(key)]
            stream.cancel()
            stubs.close(session.session_id)
            eventually(lambda: value("ray_riverrun_sessions", graph="synthetic", state="running") == 0)
