"""The manifests: each object is one that Kubernetes knows, each container is bounded and watched, nobody is let in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.infra.infra_files import INFRA, documents, series_given

FOLDER = INFRA / "kubernetes"
BASE = FOLDER / "base"
OVERLAYS = sorted(path.parent for path in (FOLDER / "overlays").glob("*/kustomization.yaml"))
(KUSTOMIZATION,) = documents(BASE / "kustomization.yaml")
OBJECTS = [document for name in KUSTOMIZATION["resources"] for document in documents(BASE / name)]
PODS = [each for each in OBJECTS if each["kind"] in ("Deployment", "StatefulSet", "Job")]


def key(document: dict[str, Any]) -> tuple[str, str]:
    return document["kind"], document["metadata"]["name"]


def named(kind: str, name: str) -> dict[str, Any]:
    return next(each for each in OBJECTS if key(each) == (kind, name))


def test_every_file_is_used_once() -> None:
    there = {path.name for path in BASE.glob("*.yaml")} - {"kustomization.yaml"}
    assert there == set(KUSTOMIZATION["resources"])
    assert len({key(each) for each in OBJECTS}) == len(OBJECTS)


def test_kubernetes_knows_every_object() -> None:
    validate = pytest.importorskip("kubernetes_validate")
    for each in OBJECTS:
        validate.validate(each, "1.33", strict=True)


@pytest.mark.parametrize("pod", PODS, ids=lambda pod: pod["metadata"]["name"])
def test_each_container_is_bounded_watched_and_no_root(pod: dict[str, Any]) -> None:
    template = pod["spec"]["template"]
    labels = template["metadata"]["labels"]
    ends = pod["kind"] == "Job"
    assert ends or pod["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert template["spec"]["securityContext"]["runAsNonRoot"] is True
    assert template["spec"]["automountServiceAccountToken"] is False
    volumes = {volume["name"] for volume in template["spec"]["volumes"]}
    volumes |= {claim["metadata"]["name"] for claim in pod["spec"].get("volumeClaimTemplates", [])}
    for container in template["spec"]["containers"]:
        assert {"cpu", "memory"} == set(container["resources"]["limits"]) == set(container["resources"]["requests"])
        assert ends or (container["livenessProbe"] and container["startupProbe"])
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        secrets = next(v["secret"] for v in template["spec"]["volumes"] if v["name"] == "secrets")
        given = {f"/run/secrets/ruvllm/{item['path']}" for item in secrets["items"]}
        asked = {env["value"] for env in container["env"] if "/run/secrets/" in env["value"]}
        asked |= {word for word in container["args"] if word.startswith("/run/secrets/")}
        assert asked == given
        for env in container["env"]:
            assert "@" not in env["value"], env["name"]  # no address with a password


def test_images_are_pinned() -> None:
    pinned = {image["name"]: image["newTag"] for image in KUSTOMIZATION["images"]}
    for pod in PODS:
        for container in pod["spec"]["template"]["spec"]["containers"]:
            assert ":" in container["image"] or container["image"] in pinned


def test_the_gateway_leaves_traffic_before_it_stops_and_scales_with_its_queue() -> None:
    (container,) = named("Deployment", "gateway")["spec"]["template"]["spec"]["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert (
        container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    )  # a database that is away is no reason to kill it
    scaler = named("HorizontalPodAutoscaler", "gateway")["spec"]
    assert scaler["scaleTargetRef"]["name"] == "gateway"
    assert {metric["pods"]["metric"]["name"] for metric in scaler["metrics"]} <= series_given()
    assert named("PodDisruptionBudget", "gateway")["spec"]["minAvailable"] < scaler["minReplicas"]


def test_a_night_is_never_run_by_two_workers() -> None:
    worker = named("Deployment", "worker")["spec"]
    assert (worker["replicas"], worker["strategy"]["type"]) == (1, "Recreate")


def test_nobody_is_let_in_but_by_a_rule() -> None:
    policies = {each["metadata"]["name"]: each["spec"] for each in OBJECTS if each["kind"] == "NetworkPolicy"}
    nobody = policies["nobody"]
    assert (nobody["podSelector"], nobody["policyTypes"]) == ({}, ["Ingress", "Egress"])
    assert "ingress" not in nobody
    names = {pod["metadata"]["name"] for pod in PODS}
    for name, spec in policies.items():
        for rule in [*spec.get("ingress", []), *spec.get("egress", [])]:
            if name not in ("nobody", "gateway"):
                assert rule.get("from") or rule.get("to"), name
            for peer in [*rule.get("from", []), *rule.get("to", [])]:
                assert selected(peer.get("podSelector", {})) <= names, name


def selected(selector: dict[str, Any]) -> set[str]:
    found = set(selector.get("matchLabels", {}).values())
    for expression in selector.get("matchExpressions", []):
        found |= set(expression["values"])
    return found


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_overlays_patch_what_is_there_and_bring_every_secret(overlay: Path) -> None:
    (kustomization,) = documents(overlay / "kustomization.yaml")
    assert kustomization["resources"] == ["../../base"]
    known = {key(each) for each in OBJECTS}
    for patch in kustomization["patches"]:
        for document in documents(overlay / patch["path"]):
            assert key(document) in known, patch["path"]
    wanted = {
        item["key"]
        for pod in PODS
        for volume in pod["spec"]["template"]["spec"]["volumes"]
        for item in volume.get("secret", {}).get("items", [])
    }
    (generator,) = kustomization["secretGenerator"]
    assert {Path(file).name for file in generator["files"]} == wanted
    assert (overlay / "secrets" / ".gitignore").read_text().splitlines()[1] == "*"
