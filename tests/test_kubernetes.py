"""The manifests of launch/ against Kubernetes' schemas, and against what they name: no cluster is needed."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from diptych.config.load import load_config
from diptych.torchrun import LOST_MACHINES
from diptych.verbs.train import STOPPED
from diptych_shards.commands import build

ROOT = Path(__file__).parents[1]
TRAIN, BUILD = (ROOT / "launch" / name for name in ("train_on_kubernetes.yaml", "build_on_kuberay.yaml"))
VERSION = "1.33"
"""The oldest Kubernetes that the manifests promise to work with."""

RAY_JOB = {
    "": "apiVersion kind metadata spec",
    "spec": "backoffLimit entrypoint rayClusterSpec shutdownAfterJobFinishes ttlSecondsAfterFinished",
    "spec.rayClusterSpec": "headGroupSpec workerGroupSpecs",
    "spec.rayClusterSpec.headGroupSpec": "rayStartParams template",
    "spec.rayClusterSpec.workerGroupSpecs": "groupName maxReplicas minReplicas rayStartParams replicas template",
}
"""Path in a RayJob → the keys of KubeRay's definition (ray.io/v1) that we use there; a pod's are Kubernetes' own."""


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def validate(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, VERSION, strict=True)


def training_job() -> dict[str, Any]:
    return documents(TRAIN)[1]["spec"]


def container() -> dict[str, Any]:
    return training_job()["template"]["spec"]["containers"][0]


def environment() -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container()["env"]}


def ray_pods() -> list[dict[str, Any]]:
    cluster = documents(BUILD)[0]["spec"]["rayClusterSpec"]
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def test_the_training_manifest_has_kubernetes_schema():
    kinds = [document["kind"] for document in documents(TRAIN)]
    assert kinds == ["Service", "Job"]
    for document in documents(TRAIN):
        validate(document)


def test_a_misspelt_key_would_be_found():
    service, job = documents(TRAIN)
    job["spec"]["paralelism"] = job["spec"].pop("parallelism")
    with pytest.raises(kubernetes_validate.ValidationError, match="paralelism"):
        validate(job)


def test_the_building_manifest_has_the_keys_of_kuberay_and_pods_of_kubernetes():
    (job,) = documents(BUILD)
    for path, known in RAY_JOB.items():
        place = job
        for key in filter(None, path.split(".")):
            place = place[key]
        for keys in place if isinstance(place, list) else [place]:
            assert set(keys) <= set(known.split()), path
    for pod in ray_pods():
        validate({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": pod})


def test_the_pods_meet_at_the_first_of_them_by_the_services_name():
    service, job = documents(TRAIN)
    host, _, port = environment()["RDZV_ENDPOINT"].partition(":")
    assert host == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert int(port) in [each["port"] for each in service["spec"]["ports"]]
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert job["spec"]["completionMode"] == "Indexed"
    assert int(environment()["NNODES"]) == job["spec"]["completions"] == job["spec"]["parallelism"]


def test_a_pod_has_the_time_to_save_that_its_launcher_gives_the_ranks():
    (script,) = container()["command"]
    given = int(re.search(r"--shutdown-timeout (\d+)", (ROOT / script).read_text())[1])
    assert given >= 120
    assert training_job()["template"]["spec"]["terminationGracePeriodSeconds"] > given


def test_a_lost_pod_costs_none_of_the_tries_and_a_users_mistake_ends_the_job():
    replaced, alone, stopped, ended = training_job()["podFailurePolicy"]["rules"]
    assert replaced == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert [(rule["action"], rule["onExitCodes"]["values"]) for rule in (alone, stopped, ended)] == [
        ("Ignore", [LOST_MACHINES]),
        ("Ignore", [STOPPED]),
        ("FailJob", [2]),
    ]
    assert {rule["onExitCodes"]["containerName"] for rule in (alone, stopped, ended)} == {container()["name"]}


def test_no_pod_is_root_and_the_user_is_that_of_the_image():
    (uid,) = set(re.findall(r"^USER (\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    for pod in (training_job()["template"], *ray_pods()):
        security = pod["spec"]["securityContext"]
        assert security["runAsNonRoot"] and security["runAsUser"] == int(uid)


def test_loaders_have_memory_to_share():
    pod = training_job()["template"]["spec"]
    (shared,) = (volume for volume in pod["volumes"] if volume.get("emptyDir", {}).get("medium") == "Memory")
    assert {"name": shared["name"], "mountPath": "/dev/shm"} in container()["volumeMounts"]


def test_the_training_job_names_a_config_and_keys_that_exist(monkeypatch):
    monkeypatch.chdir(ROOT)
    config, *overrides = container()["args"]
    volumes = tuple(f"{mount['mountPath']}/" for mount in container()["volumeMounts"])
    loaded = load_config([Path(config)], overrides).config
    assert str(loaded.data.train).startswith(volumes) and loaded.run_dir.startswith(volumes)


def test_the_building_job_runs_a_command_that_exists():
    (job,) = documents(BUILD)
    program, command, *words = job["spec"]["entrypoint"].split()
    assert (program, command) == ("diptych-shards", "build")
    parser = argparse.ArgumentParser()
    build.add_arguments(parser)
    assert parser.parse_args(words).engine == "ray"
    group = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
