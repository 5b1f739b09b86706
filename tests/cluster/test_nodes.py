"""A real Ray cluster with token authentication: a job is submitted to it, and nodes that lack something are found."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from msad.cluster.nodes import node_problems, require_sweep
from msad.cluster.workers.task import Task
from msad.code_version import code_digest
from msad.errors import ResourceError
from msad.training.job_config import JobConfig
from msad.workspace import Workspace
from tests.faults.breakable import RAY, free_port, ray_head, stop

REPOSITORY = Path(__file__).parents[2]

# Asks the other node of the cluster about each pair of a sweep's folder and a dataset, once with other code than its.
ASK = """
import json, sys, time
from pathlib import Path
import ray
from msad.cluster import nodes
from msad.errors import ResourceError
address, pairs = sys.argv[1], json.loads(sys.argv[2])
ray.init(address=address, log_to_driver=False, logging_level="ERROR")
while sum(node["Alive"] for node in ray.nodes()) < 2:
    time.sleep(0.2)
def ask(root, dataset):
    try:
        nodes.check_nodes(Path(root), Path(dataset))
    except ResourceError as error:
        return str(error)
    return "fit"
answers = [ask(*pair) for pair in pairs]
nodes.code_digest = lambda: "of another version"
print(json.dumps([len(ray.nodes()), *answers, ask(*pairs[0])]))
"""


@dataclass
class Head:
    """A head node of its own ports and folders, and the variables that whoever talks to it needs."""

    address: str
    jobs: str
    environment: dict[str, str]

    def run(self, *words: str, timeout: float = 300) -> subprocess.CompletedProcess:
        return subprocess.run(
            words, env=self.environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout
        )


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    unwanted = {"MLFLOW_TRACKING_URI", "RAY_ADDRESS"}
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    path = os.pathsep.join(filter(None, [str(REPOSITORY), environment.get("PYTHONPATH")]))
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a-token-of-this-test" * 2, "PYTHONPATH": path}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"  # a job's `python` is this one
    words = ["--num-gpus=0", f"--ray-client-server-port={free_port()}", "--node-ip-address=127.0.0.1"]
    with ray_head(environment, *words) as (address, jobs, _):
        yield Head(address, jobs, environment)


@pytest.mark.slow
def test_sweep_is_submitted_as_a_ray_job_with_its_code_shipped(head, wheel, demo, tmp_path):
    """The working directory holds the package, so what runs is what was submitted, on whatever node."""
    shipped = tmp_path / "shipped"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", shipped, wheel]
    subprocess.run([*map(str, install)], check=True)
    with (shipped / "msad" / "__init__.py").open("a") as file:  # on a node with other code a sweep does not begin
        file.write("\nprint('the shipped code runs')\n")
    search = ["python", "-m", "msad", "train", "--address", "auto", "--name", "submitted"]
    data = ["--dataset", str(demo), "--categories", "brick", "--architectures", "baseline", "--storage", str(tmp_path)]
    small = ["--image-size", "32", "--epochs", "1", "--set", "model/base_width=4", "--set", "model/depth=2"]
    tracking = ["--tracking-uri", f"sqlite:///{tmp_path / 'mlflow.db'}"]
    submit = ["job", "submit", "--address", head.jobs, "--working-dir", str(shipped), "--"]
    deadline = time.monotonic() + 120
    while True:
        done = head.run(RAY, *submit, *search, *data, *small, *tracking)
        starting = "No available agent" in done.stderr or "Failed to connect" in done.stderr
        if not starting or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "the shipped code runs" in done.stdout
    assert "submitted: 1 study trained once as configured" in done.stdout
    assert (tmp_path / "submitted" / "jobs" / "brick-baseline-final" / "test.json").exists()


@pytest.mark.slow  # the dashboard may need minutes on a busy machine
def test_job_without_the_token_is_refused(head):
    stranger = {**head.environment, "RAY_AUTH_TOKEN": "another-token-than-the-cluster's"}
    deadline, told = time.monotonic() + 300, ""
    while "token" not in told and time.monotonic() < deadline:  # until the dashboard answers, none is asked for
        listed = subprocess.run(
            [RAY, "job", "list", "--address", head.jobs], env=stranger, capture_output=True, text=True, timeout=300
        )
        told = (listed.stdout + listed.stderr).lower()
    assert listed.returncode != 0 and "token" in told, told


@pytest.fixture(scope="module")
def answers(head, tmp_path_factory) -> list[int | str]:
    """What a second node, which does not see the folder `private`, answers about each folder and dataset."""
    folder = tmp_path_factory.mktemp("nodes")
    shared, private = folder / "shared", folder / "private"
    for path in (shared / "sweep", shared / "images", private / "sweep", private / "images"):
        path.mkdir(parents=True)
    hide = f"mount -t tmpfs none {private} && mkdir {private}/other && exec {RAY} start --address={head.address}"
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("mount namespaces are not permitted here: run as root to test nodes with folders of their own")
    process = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", f"{hide} --num-cpus=1 --node-ip-address=127.0.0.1 --block"],
        env=head.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        pairs = [
            [str(shared / "sweep"), str(shared / "images")],
            [str(private / "sweep"), str(shared / "images")],
            [str(private / "sweep"), str(private / "images")],
        ]
        done = head.run(sys.executable, "-c", ASK, head.address, json.dumps(pairs))
        assert done.returncode == 0, done.stderr
        assert not [left for pair in pairs for left in Path(pair[0]).iterdir()], "the check left something behind"
        return json.loads(done.stdout.splitlines()[-1])
    finally:
        stop(process)


def test_nodes_that_share_folder_and_images_are_fit(answers):
    assert answers[:2] == [2, "fit"]


def test_folder_that_a_node_does_not_see_is_refused_by_name(answers):
    problem, *more = answers[2].splitlines()[1:]
    assert re.match(r"  [\d.]+: it does not see .*/private/sweep: ", problem) and "--storage" in problem and not more


def test_all_that_a_node_lacks_is_named_at_once(answers):
    assert "--storage" in answers[3] and "--dataset" in answers[3]


def test_node_with_other_code_is_refused(answers):
    assert "is not the one that runs the sweep" in answers[4] and "install the same" in answers[4]


def test_folder_that_is_another_one_of_the_same_name_is_no_shared_folder(tmp_path):
    (tmp_path / "nodes").mkdir()
    (tmp_path / "nodes" / "token").write_text("of an earlier sweep")
    (problem,) = node_problems(str(tmp_path / "nodes"), "new", str(tmp_path), "0", code_digest())
    assert "another folder" in problem


def test_job_on_a_node_that_joined_without_the_folder_is_refused(tmp_path):
    workspace = Workspace(tmp_path / "first")
    job = JobConfig(category="brick", architecture="baseline")
    task = Task(job_id="a", job=job, dataset=tmp_path, cache=tmp_path, directory=workspace.job("a"))
    with pytest.raises(ResourceError, match=r"does not see the sweep's folder .*first: mount it there"):
        require_sweep(task)
    workspace.root.mkdir()
    workspace.config.touch()
    require_sweep(task)
