"""What is handed to Kubernetes and SkyPilot fits their schemas and says what the exit statuses mean."""

import copy
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from launch.xla_flags import PRESETS
from tests.launch.checkout import ENDS, ROOT, checkout, environment
from tests.launch.schemas import JOBSET, SKY

FOLDER = ROOT / "launch" / "kubernetes"
FIELDS = {
    "tpu": dict(PRESET="tpu_v5e", ACCELERATOR="tpu-v5-lite-podslice", TOPOLOGY="4x4", HOSTS="4", CHIPS="4"),
    "gpu": dict(PRESET="gpu_multihost", ACCELERATOR="nvidia-h100-80gb", HOSTS="2", GPUS="8"),
}
ARGUMENTS = ("--config=configs/adapt/recover.py:model=clip_b16", "--workdir=/runs/a", '--config.x=((0.5, "$1"),)')

FAILED = "Container train for pod a/b failed with exit code"  # Kubernetes, pkg/controller/job/pod_failure_policy.go


def render(kind: str, *arguments: str, **changes: str) -> subprocess.CompletedProcess:
    common = dict(NAME="adapt", IMAGE="registry/spatial_clip:1", CLAIM="runs")
    command = [FOLDER / "render.sh", FOLDER / f"jobset_{kind}.yaml", *arguments]
    return subprocess.run(command, env=os.environ | common | FIELDS[kind] | changes, capture_output=True, text=True)


def manifest(kind: str) -> dict[str, Any]:
    return yaml.safe_load(render(kind, *ARGUMENTS).stdout)


def job_of(jobset: dict[str, Any]) -> dict[str, Any]:
    (workers,) = jobset["spec"]["replicatedJobs"]
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": workers["name"]}, **workers["template"]}


def check(jobset: dict[str, Any]) -> None:
    """An error for what the API server would refuse, or a strict client warn of."""
    jsonschema.validate(jobset, JOBSET)
    kubernetes_validate.validate(job_of(jobset), kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("kind", FIELDS)
def test_a_rendered_jobset_fits_its_schemas(kind: str):
    jobset = manifest(kind)
    check(jobset)
    job, fields = job_of(jobset)["spec"], FIELDS[kind]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert job["parallelism"] == job["completions"] == int(fields["HOSTS"])
    assert list(container["resources"]["limits"].values()) == [int(fields.get("CHIPS") or fields["GPUS"])]
    assert {"name": "PRESET", "value": fields["PRESET"]} in container["env"] and fields["PRESET"] in PRESETS
    # Kubernetes writes $$ for a dollar sign; the rest is as it was given.
    assert [argument.replace("$$", "$") for argument in container["args"][:3]] == list(ARGUMENTS)
    assert pod["restartPolicy"] == "Never"  # without it the API server refuses podFailurePolicy
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_gpu_pods_find_each_other():
    """By the name that JobSet gives to the first pod, and each by its own number, as Kubernetes fills it in."""
    argument = job_of(manifest("gpu"))["spec"]["template"]["spec"]["containers"][0]["args"][-1]
    name, _, value = argument.replace("$(JOB_COMPLETION_INDEX)", "1").partition("=")
    assert name == "--config.distributed"
    said = {"coordinator_address": "adapt-workers-0-0.adapt:8476", "num_processes": 2, "process_id": 1}
    assert yaml.safe_load(value) == said


@pytest.mark.parametrize("kind", FIELDS)
@pytest.mark.parametrize(
    "reason, message, action",
    [
        (
            "PodFailurePolicy",
            f"{FAILED} 143 matching FailJob rule at index 1",
            "RestartJobSet",
        ),
        (
            "PodFailurePolicy",
            f"{FAILED} 75 matching FailJob rule at index 1",
            "RestartJobSet",
        ),
        (
            "PodFailurePolicy",
            "Pod a/b has condition DisruptionTarget matching FailJob rule at index 0",
            "RestartJobSetAndIgnoreMaxRestarts",
        ),
        ("BackoffLimitExceeded", "Job has reached the specified backoff limit", "FailJobSet"),
    ],
)
def test_what_a_failed_job_leads_to(kind: str, reason: str, message: str, action: str):
    """JobSet's rule: the first whose reasons and message patterns both match; none given match all."""
    jobset = manifest(kind)
    for rule in jobset["spec"]["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule.get("onJobFailureReasons", [reason]) and any(re.search(p, message) for p in patterns):
            assert rule["action"] == action
            break
    codes = job_of(jobset)["spec"]["podFailurePolicy"]["rules"][1]["onExitCodes"]
    assert codes["values"] == [75, 134, 143] and codes["containerName"] == "train"


@pytest.mark.parametrize("where", ["jobset", "rule", "job", "pod", "container"])
def test_a_misspelt_field_is_refused(where: str):
    jobset = copy.deepcopy(manifest("tpu"))
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    places = dict(
        jobset=jobset["spec"], rule=jobset["spec"]["failurePolicy"]["rules"][0], job=job, pod=pod,
        container=pod["containers"][0],
    )  # fmt: skip
    places[where]["terminationGracePeriodSecond"] = 1
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(jobset)


def test_what_is_missing_is_named():
    for kind, fields in FIELDS.items():
        for name in (*fields, "NAME", "IMAGE", "CLAIM"):
            done = render(kind, *ARGUMENTS, **{name: ""})
            assert done.returncode == 2 and f"error: {name} is not set" in done.stderr and not done.stdout
    assert "usage: NAME=..." in render("tpu", "--config=x").stderr


def test_the_sky_task_fits_its_schema_and_starts_the_job(tmp_path: Path):
    task = yaml.safe_load((ROOT / "launch" / "sky" / "train.yaml").read_text())
    jsonschema.validate(task, SKY)
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75, 134, 143]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(task | {"file_mount": {}}, SKY)

    folder, log = checkout(tmp_path / "checkout", ENDS), tmp_path / "log"
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()
    sky = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
    own = environment(ARGUMENTS="--config=x '--workdir=a folder'", STATUSES="75", LOG=str(log), **sky)
    done = subprocess.run(["bash", "-c", task["run"]], cwd=folder, env=own, timeout=60)
    assert done.returncode == 75  # SkyPilot is told, and starts again
    joined = "{'coordinator_address': '10.0.0.1:8476', 'num_processes': 2, 'process_id': 1}"
    assert log.read_text() == f"--config=x --workdir=a folder --config.distributed={joined}\n"
