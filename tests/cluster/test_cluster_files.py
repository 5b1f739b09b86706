"""The files that start clusters: valid for Ray's launcher and for KubeRay, and a trial fits where it should.

Each check is proved by faults that are planted into a copy.
"""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from msad.cluster.trial_resources import divide
from msad.errors import ResourceError
from msad.search.config import SweepConfig, load, make_config
from msad.terminal.cli import msad
from msad.terminal.options import settings_of

REPOSITORY = Path(__file__).parents[2]
AWS = REPOSITORY / "cluster.yaml"
SSH = REPOSITORY / "docs" / "examples" / "clusters" / "ssh.yaml"
RAYJOB = REPOSITORY / "docs" / "examples" / "clusters" / "rayjob.yaml"
SWEEP = REPOSITORY / "docs" / "examples" / "cluster.yaml"


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def check_launcher(config: dict[str, Any]) -> dict[str, Any]:
    """Return a launcher's file with Ray's defaults, if Ray accepts it."""
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def check_token(config: dict[str, Any]) -> None:
    mounts = config["file_mounts"]
    assert mounts["~/.ray/auth_token"] == "~/.ray/auth_token", "no node gets the token"
    in_container = "-e RAY_AUTH_MODE=token" in config.get("docker", {}).get("run_options", [])
    starts = [
        line for role in ("head", "worker") for line in config[f"{role}_start_ray_commands"] if "ray start" in line
    ]
    assert len(starts) == 2
    assert in_container or all("RAY_AUTH_MODE=token" in line for line in starts), "Ray starts without authentication"
    assert "--dashboard-host=127.0.0.1" in starts[0], "the dashboard listens beyond the head"


def check_install(config: dict[str, Any]) -> None:
    assert config["file_mounts"]["~/msad"] == "." and ".git" in config["rsync_exclude"]
    assert any(line.endswith("--constraint ~/msad/constraints.txt ~/msad") for line in config["setup_commands"])


def check_aws(config: dict[str, Any]) -> None:
    prepared = check_launcher(config)
    check_token(config)
    check_install(config)
    assert config["idle_timeout_minutes"] > 0 and config["provider"]["cache_stopped_nodes"] is False
    types = dict(prepared["available_node_types"])
    head = types.pop(prepared["head_node_type"])
    assert types and all(kind["min_workers"] == 0 < kind["max_workers"] for kind in types.values()), (
        "never scales to zero"
    )
    version = re.search(r"^ray==(.*)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)[1]
    assert all(f":{version}-py311" in config["docker"][name] for name in ("image", "head_image"))
    sweep = make_config(load(SWEEP))
    check_shared(sweep, "/shared")
    assert any("mount -t nfs4" in line and line.endswith(":/ /shared") for line in config["initialization_commands"])
    assert "-v /shared:/shared" in config["docker"]["run_options"], "the container does not see the shared folder"
    check_room(sweep, head["resources"], [kind["resources"] for kind in types.values()])


def check_shared(sweep: SweepConfig, mount: str) -> None:
    assert sweep.dataset.is_relative_to(mount) and sweep.storage.is_relative_to(mount), f"not in {mount}"


def check_room(sweep: SweepConfig, head: dict[str, float], workers: list[dict[str, float]]) -> None:
    """Check that a trial fits each worker and not the head, which has CPUs for the processes that wait for trials."""
    for worker in workers:
        divide(sweep, [worker])
    with pytest.raises(ResourceError):
        divide(sweep, [head])
    assert head["CPU"] >= 1


def check_rayjob(job: dict[str, Any]) -> SweepConfig:
    """Check a manifest; return the sweep that its entrypoint describes."""
    jsonschema.validate(job, RAYJOB_FIELDS)
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    sweep = sweep_of(spec["entrypoint"])
    assert (sweep.address, sweep.resources.autoscaling) == ("auto", True)
    assert spec["shutdownAfterJobFinishes"] and spec["backoffLimit"] == 0
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert cluster["enableInTreeAutoscaling"] and cluster["autoscalerOptions"]["idleTimeoutSeconds"] > 0
    assert (workers["minReplicas"], workers["replicas"]) == (0, 0), "never scales to zero"
    assert workers["maxReplicas"] == sweep.resources.concurrency
    pods = [group["template"]["spec"] for group in (head, workers)]
    for pod in pods:
        (container,) = pod["containers"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert set(mounts) == set(volumes), "a volume is not mounted, or a mount has no volume"
        assert "persistentVolumeClaim" in volumes["shared"]
        check_shared(sweep, mounts["shared"])
        for name, value in ((entry["name"], entry["value"]) for entry in container.get("env", [])):
            assert name == "MSAD_CACHE" and value == mounts["cache"]
    limits = pods[1]["containers"][0]["resources"]["limits"]
    fixed = sweep.model_copy(update={"resources": sweep.resources.model_copy(update={"autoscaling": False})})
    params = head["rayStartParams"]
    check_room(
        fixed,
        {"CPU": float(params["num-cpus"]), "GPU": float(params["num-gpus"])},
        [{"CPU": float(limits["cpu"]), "GPU": float(limits["nvidia.com/gpu"])}],
    )
    return sweep


def sweep_of(command: str) -> SweepConfig:
    """Return the sweep that a command line describes, parsed by the program's own options."""
    program, name, *words = shlex.split(command)
    assert program == "msad"
    options = dict(msad.commands[name].make_context(name, words).params)
    file = options.pop("config", None)
    for other in ("resume", "restart_changed", "json_file"):  # no settings of a sweep
        options.pop(other, None)
    return make_config(settings_of(file and REPOSITORY / file, options))


def thing(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties, "required": list(required)}


def listed(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


# The fields of KubeRay 1.6 and of Kubernetes' pods that the manifest uses, each with the type that their published
# definitions give it (ray-operator/config/crd/bases/ray.io_rayjobs.yaml, 1.2 MB); any other is a mistake here.
TEXT, COUNT, YES_NO = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
TEXTS = {"type": "object", "additionalProperties": TEXT}
QUANTITIES = {"type": "object", "additionalProperties": {"type": "string", "pattern": "^[0-9]+(m|Mi|Gi)?$"}}
POD = thing(
    ("spec",),
    spec=thing(
        ("containers",),
        containers=listed(
            thing(
                ("name", "image"),
                name=NAME,
                image=TEXT,
                env=listed(thing(("name",), name=TEXT, value=TEXT)),
                resources=thing(requests=QUANTITIES, limits=QUANTITIES),
                volumeMounts=listed(thing(("name", "mountPath"), name=NAME, mountPath=TEXT)),
            )
        ),
        volumes=listed(
            thing(
                ("name",),
                name=NAME,
                persistentVolumeClaim=thing(("claimName",), claimName=NAME),
                emptyDir=thing(),
            )
        ),
    ),
)
RAYJOB_FIELDS = thing(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=thing(("name",), name={**NAME, "maxLength": 47}),
    spec=thing(
        ("entrypoint", "rayClusterSpec"),
        entrypoint=TEXT,
        shutdownAfterJobFinishes=YES_NO,
        ttlSecondsAfterFinished=COUNT,
        backoffLimit=COUNT,
        rayClusterSpec=thing(
            ("headGroupSpec", "authOptions", "rayVersion"),  # KubeRay asks for the version where there is a token
            rayVersion={"const": ray.__version__},
            authOptions=thing(("mode",), mode={"const": "token"}),
            enableInTreeAutoscaling=YES_NO,
            autoscalerOptions=thing(idleTimeoutSeconds=COUNT),
            headGroupSpec=thing(("rayStartParams", "template"), rayStartParams=TEXTS, template=POD),
            workerGroupSpecs=listed(
                thing(
                    ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
                    groupName=NAME,
                    replicas=COUNT,
                    minReplicas=COUNT,
                    maxReplicas=COUNT,
                    rayStartParams=TEXTS,
                    template=POD,
                )
            ),
        ),
    ),
)

Fault = Callable[[dict[str, Any]], object]


def put(*path: str | int, value: Any) -> Fault:
    """Return a fault that puts a value at a path."""

    def plant(config: dict[str, Any]) -> None:
        for step in path[:-1]:
            config = config[step]
        config[path[-1]] = value

    return plant


def test_cluster_on_aws_is_what_ray_accepts_and_a_trial_fits():
    check_aws(read(AWS))


AWS_FAULTS = {
    "unknown key": (put("idle_timeout", value=5), jsonschema.ValidationError, "idle_timeout"),
    "wrong type": (put("max_workers", value="8"), jsonschema.ValidationError, "'8' is not of type"),
    "fraction": (put("available_node_types", "head", "resources", "CPU", value=0.5), jsonschema.ValidationError, "0.5"),
    "no such head": (put("head_node_type", value="haed"), ValueError, "head_node_type"),
    "never idle": (put("available_node_types", "gpu_worker", "min_workers", value=1), AssertionError, "scales to zero"),
    "no token": (put("docker", "run_options", value=["-v /shared:/shared"]), AssertionError, "without authentication"),
    "open": (put("head_start_ray_commands", value=["ray start --head"]), AssertionError, "beyond the head"),
    "not mounted": (put("docker", "run_options", 0, value="-v /data:/data"), AssertionError, "shared folder"),
    "small": (put("available_node_types", "gpu_worker", "resources", "CPU", value=2), ResourceError, "CPUs per trial"),
    "head with a GPU": (
        put("available_node_types", "head", "resources", value={"CPU": 8, "GPU": 1}),
        pytest.fail.Exception,
        "DID NOT RAISE",
    ),
}


@pytest.mark.parametrize("name", AWS_FAULTS)
def test_fault_in_the_cluster_on_aws_is_found(name):
    plant, kind, text = AWS_FAULTS[name]
    config = read(AWS)
    plant(config)
    with pytest.raises(kind, match=text):
        check_aws(config)


def test_cluster_by_ssh_is_what_ray_accepts():
    config = read(SSH)
    (machines,) = check_launcher(config)["available_node_types"].values()
    assert machines["min_workers"] == machines["max_workers"] == len(config["provider"]["worker_ips"])
    check_token(config)
    check_install(config)


@pytest.mark.parametrize(
    ("plant", "kind", "text"),
    [
        (put("provider", "worker_ips", value="192.0.2.11"), jsonschema.ValidationError, "not of type 'array'"),
        (put("auth", "user", value="ubuntu"), jsonschema.ValidationError, "user"),
        (
            put("worker_start_ray_commands", value=["ray start --address=$RAY_HEAD_IP"]),
            AssertionError,
            "authentication",
        ),
    ],
)
def test_fault_in_the_cluster_by_ssh_is_found(plant, kind, text):
    config = read(SSH)
    plant(config)
    with pytest.raises(kind, match=text):
        check_launcher(config)
        check_token(config)


def test_job_on_kubernetes_is_whole_and_its_command_is_a_sweep():
    sweep = check_rayjob(read(RAYJOB))
    assert sweep.trials == 50 and sweep.tracking_uri.startswith("http")


CLUSTER = ("spec", "rayClusterSpec")
WORKERS = (*CLUSTER, "workerGroupSpecs", 0)
CONTAINER = ("template", "spec", "containers", 0)
RAYJOB_FAULTS = {
    "unknown field": (put(*CLUSTER, "autoscaling", value=True), jsonschema.ValidationError, "autoscaling"),
    "number": (
        put(*CLUSTER, "headGroupSpec", "rayStartParams", "num-cpus", value=1),
        jsonschema.ValidationError,
        "1 is",
    ),
    "no token": (put(*CLUSTER, "authOptions", value={"mode": "disabled"}), jsonschema.ValidationError, "token"),
    "old Ray": (put(*CLUSTER, "rayVersion", value="2.9.0"), jsonschema.ValidationError, "2.9.0"),
    "never idle": (put(*WORKERS, "minReplicas", value=1), AssertionError, "scales to zero"),
    "no GPU": (
        put(*WORKERS, *CONTAINER, "resources", "limits", value={"cpu": "4", "nvidia.com/gpu": "0"}),
        ResourceError,
        "GPUs per trial",
    ),
    "elsewhere": (
        put(*WORKERS, *CONTAINER, "volumeMounts", 0, "mountPath", value="/data"),
        AssertionError,
        "not in /data",
    ),
    "no volume": (put(*WORKERS, *CONTAINER, "volumeMounts", 1, "name", value="disk"), AssertionError, "has no volume"),
}


@pytest.mark.parametrize("name", RAYJOB_FAULTS)
def test_fault_in_the_job_on_kubernetes_is_found(name):
    plant, kind, text = RAYJOB_FAULTS[name]
    job = read(RAYJOB)
    plant(job)
    with pytest.raises(kind, match=text):
        check_rayjob(job)


def test_command_with_an_option_that_msad_has_not_is_found():
    job = read(RAYJOB)
    job["spec"]["entrypoint"] += " --gpu 1"
    with pytest.raises(Exception, match="--gpu"):
        check_rayjob(job)


def test_commands_on_the_page_are_real_ones():
    page = (REPOSITORY / "docs" / "cluster.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^\$ (?:.* -- +)?(?:msad|python -m msad) (search .*)$", page, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        sweep_of(f"msad {command}")
