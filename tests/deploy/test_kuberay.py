"""The manifests for Kubernetes: core kinds and pod templates by Kubernetes' own schemas (strictly: no unknown field).

No package ships the schema of RayCluster, so its own fields are held against a list of those in its API reference
(ray.io/v1); what is in its pods is Kubernetes'.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import typer.main
import yaml
from click.testing import CliRunner

import riverrun
from riverrun.actors.serve import check_trust, load_models
from riverrun.client.cli import app
from riverrun.configs import load_service
from riverrun.models.base import BadRequest
from riverrun.protos import DEFAULT_PORT

ROOT = Path(riverrun.__file__).parent
FOLDER = ROOT / "deploy" / "kuberay"
KUBERNETES = kubernetes_validate.latest_version()


def manifests() -> Iterator[dict[str, Any]]:
    """Every object that `kubectl apply -k` makes but the generated ones, with its file."""
    plan = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    for name in plan["resources"]:
        yield from yaml.safe_load_all((FOLDER / name).read_text())


@pytest.fixture
def cluster() -> dict[str, Any]:
    (found,) = [one for one in manifests() if one["kind"] == "RayCluster"]
    return found["spec"]


def templates(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Pod templates by group."""
    groups = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"]["template"], **groups}


def container(template: dict[str, Any]) -> dict[str, Any]:
    (only,) = template["spec"]["containers"]
    return only


def only(*names: str, required: tuple[str, ...] = (), **kinds: dict[str, Any]) -> dict[str, Any]:
    """The schema of an object that has no other keys."""
    properties = {**{name: {} for name in names}, **kinds}
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


COUNT = {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
RAY_CLUSTER = only(
    "suspend",
    "managedBy",
    "headServiceAnnotations",
    "authOptions",
    required=("headGroupSpec",),
    rayVersion={"type": "string"},
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=only(
        "resources",
        "image",
        "imagePullPolicy",
        "env",
        "envFrom",
        "volumeMounts",
        "securityContext",
        idleTimeoutSeconds=COUNT,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        version={"enum": ["v1", "v2"]},
    ),
    gcsFaultToleranceOptions=only(
        "redisUsername",
        "redisPassword",
        required=("redisAddress",),
        redisAddress={"type": "string"},
        externalStorageNamespace={"type": "string"},
    ),
    headGroupSpec=only(
        "headService",
        "enableIngress",
        "serviceType",
        "resources",
        "labels",
        "template",
        required=("template",),
        rayStartParams=TEXTS,
    ),
    workerGroupSpecs={
        "type": "array",
        "items": only(
            "suspend",
            "scaleStrategy",
            "resources",
            "labels",
            "template",
            required=("groupName", "template", "minReplicas", "maxReplicas"),
            groupName={"type": "string"},
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            numOfHosts=COUNT,
            idleTimeoutSeconds=COUNT,
            rayStartParams=TEXTS,
        ),
    },
)


def validate(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    "manifest",
    [m for m in manifests() if m["kind"] != "RayCluster"],
    ids=lambda m: f"{m['kind']}-{m['metadata']['name']}",
)
def test_core_kinds_fit_kubernetes_schemas(manifest: dict[str, Any]) -> None:
    validate(manifest)


def test_pods_of_the_cluster_fit_kubernetes_schema(cluster: dict[str, Any]) -> None:
    for template in templates(cluster).values():
        validate({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template})


def test_the_schemas_bite(cluster: dict[str, Any]) -> None:
    template = templates(cluster)["gpu"]
    container(template)["lifeCycle"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="lifeCycle"):
        validate({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template})
    cluster["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        jsonschema.validate(cluster, RAY_CLUSTER)


def test_the_clusters_own_fields_are_those_of_its_api(cluster: dict[str, Any]) -> None:
    jsonschema.validate(cluster, RAY_CLUSTER)
    groups = cluster["workerGroupSpecs"]
    assert all(group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] for group in groups)
    assert {group["groupName"] for group in groups} == {"gateway", "cpu", "gpu"}
    assert "nvidia.com/gpu" in container(templates(cluster)["gpu"])["resources"]["limits"]


def test_ray_start_takes_the_parameters(cluster: dict[str, Any]) -> None:
    from ray.scripts.scripts import start

    flags = {flag.removeprefix("--") for option in start.params for flag in option.opts}
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert group["rayStartParams"].keys() - flags == set()


def test_pods_run_this_version(cluster: dict[str, Any]) -> None:
    images = {name: container(template)["image"] for name, template in templates(cluster).items()}
    assert set(images.values()) == {f"riverrun:{riverrun.__version__}", f"riverrun:{riverrun.__version__}-gpu"}
    assert images["gpu"].endswith("-gpu")
    build = (FOLDER / "Dockerfile").read_text()
    assert f"pip install --no-cache-dir 'riverrun=={riverrun.__version__}'" in build
    ours = yaml.safe_load((ROOT / "cluster.yaml").read_text())["docker"]
    assert ours["head_image"] in build
    assert ours["worker_image"] in build
    assert cluster["rayVersion"] in ours["head_image"]


def commands(cluster: dict[str, Any]) -> Iterator[list[str]]:
    """The `riverrun …` that pods run, as words."""
    for template in templates(cluster).values():
        pod = container(template)
        stop = pod.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
        for script in [*pod["args"], *stop]:
            for line in script.split(";"):
                words = shlex.split(line)
                if "riverrun" in words:
                    yield words[words.index("riverrun") + 1 :]


def test_commands_are_ours(cluster: dict[str, Any]) -> None:
    """Each command and each of its flags is there, by the command line itself."""
    tree, found = typer.main.get_group(app), set()
    for name, *words in commands(cluster):
        command = tree.commands[name]
        flags = {flag for option in command.params for flag in option.opts}
        assert {word for word in words if word.startswith("--")} <= flags
        assert CliRunner().invoke(command, ["--help"]).exit_code == 0
        found.add(name)
    assert found == {"serve", "drain"}


def test_settings_by_environment_are_ours(cluster: dict[str, Any]) -> None:
    known = {
        name for option in typer.main.get_command(app).params for name in ([option.envvar] if option.envvar else [])
    }
    known |= {"RIVERRUN_ADDRESS", "REDIS_URL", "REDIS_PASSWORD"}
    named = {var["name"] for template in templates(cluster).values() for var in container(template).get("env", [])}
    assert named <= known
    assert "RIVERRUN_TOKEN_FILE" in named


def test_the_service_takes_its_configuration(tmp_path: Path) -> None:
    config = load_service(str(FOLDER / "service.yaml"))
    assert config.is_exposed
    assert not config.is_open
    assert config.port == DEFAULT_PORT
    load_models(config)
    with pytest.raises(BadRequest, match="tokens"):  # nothing else is amiss
        check_trust(config)


def test_what_is_mounted_named_or_selected_is_there(cluster: dict[str, Any]) -> None:
    there = {(m["kind"], m["metadata"]["name"]) for m in manifests()} | {("ConfigMap", "riverrun")}
    page = (ROOT / "docs" / "operations.md").read_text()
    for template in templates(cluster).values():
        volumes = {volume["name"]: volume for volume in template["spec"].get("volumes", [])}
        assert {mount["name"] for mount in container(template)["volumeMounts"]} == volumes.keys()
        for volume in volumes.values():
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in there
            if secret := volume.get("secret"):
                assert (
                    f"secret generic {secret['secretName']} " in page or f"secret tls {secret['secretName']} " in page
                )


def test_services_and_budgets_select_pods(cluster: dict[str, Any]) -> None:
    pods = [template for name, template in templates(cluster).items() if name != "head"]
    pods += [manifest["spec"]["template"] for manifest in manifests() if manifest["kind"] == "StatefulSet"]
    chosen = [m for m in manifests() if m["kind"] in ("PodDisruptionBudget", "Service")]
    assert len(chosen) == 4
    for manifest in chosen:
        selector = manifest["spec"]["selector"]
        wanted = selector.get("matchLabels", selector)
        found = [pod for pod in pods if wanted.items() <= pod["metadata"]["labels"].items()]
        assert found, manifest["metadata"]["name"]
        for port in manifest["spec"].get("ports", []):
            names = {p["name"]: p["containerPort"] for pod in found for p in container(pod)["ports"]}
            assert port.get("targetPort", port["port"]) in {*names, *names.values()}


def test_pods_get_the_time_that_they_take_to_leave(cluster: dict[str, Any]) -> None:
    found = templates(cluster)
    config = load_service(str(FOLDER / "service.yaml"))
    sleep = int(container(found["gateway"])["lifecycle"]["preStop"]["exec"]["command"][1])
    assert found["gateway"]["spec"]["terminationGracePeriodSeconds"] > config.drain_s + sleep
    for group in ("cpu", "gpu"):
        (words,) = {tuple(words) for words in commands(cluster) if words[0] == "drain"}
        deadline = float(words[words.index("--deadline") + 1])
        assert found[group]["spec"]["terminationGracePeriodSeconds"] > deadline + 30  # servicers.MARGIN_S
