"""How many trials share a GPU or a machine: what is measured, and what follows from it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from msad.cluster.trial_packing import _train, gpu_kind, resident_bytes, resources_for
from msad.cluster.workers.task import Task
from msad.errors import ResourceError
from msad.search.config import make_config
from msad.search.heaviest import heaviest
from msad.search_spaces import space
from msad.training.job_config import JobConfig
from msad.workspace import JobDirectory

GIB = 2**30
H100 = {"CPU": 32.0, "GPU": 2.0, "memory": 200 * GIB, "accelerator_type:H100": 1.0}
NEED = {"device": 4 * GIB, "resident": 3 * GIB, "total": 80 * GIB}


def asked(**resources):
    return make_config({"name": "a", "dataset": "d", "resources": {"gpus": "auto", **resources}})


def test_gpu_is_shared_by_as_many_as_its_memory_holds_with_a_margin():
    # 80 / (1.15 × 4) = 17.4, but 16 CPUs stand beside each GPU.
    resources = resources_for(NEED, asked(), [H100])
    assert resources.gpus == pytest.approx(1 / 16) and resources.concurrency == 32 and resources.executor == "train"
    assert resources_for(NEED, asked(cpus=0.5), [H100]).gpus == pytest.approx(1 / 17, abs=1e-4)
    assert resources_for({**NEED, "device": 20 * GIB}, asked(), [H100]).gpus == pytest.approx(1 / 3, abs=1e-4)


def test_share_of_a_gpu_never_adds_up_to_more_than_one():
    for device in range(1, 60):
        gpus = resources_for({**NEED, "device": device * GIB}, asked(cpus=0.1), [H100]).gpus
        assert 1 - 1e-2 <= gpus * round(1 / gpus) <= 1


def test_trial_larger_than_half_a_gpu_gets_a_whole_one():
    assert resources_for({**NEED, "device": 50 * GIB}, asked(), [H100]).gpus == 1.0


def test_memory_of_the_node_limits_trials_on_a_gpu_too():
    resources = resources_for({**NEED, "resident": 20 * GIB}, asked(), [H100])
    assert resources.concurrency == 8 and resources.memory == pytest.approx(1.15 * 20 * GIB, rel=1e-6)


def test_machine_without_gpu_is_shared_by_its_memory():
    need, laptop = {**NEED, "resident": 2 * GIB}, {"CPU": 8.0, "memory": 7 * GIB}
    resources = resources_for(need, asked(), [laptop])
    assert (resources.executor, resources.gpus, resources.concurrency) == ("direct", 0, 3)
    assert resources_for(need, asked(), [{**laptop, "CPU": 2.0}]).concurrency == 2
    assert resources_for(need, asked(concurrency=1), [laptop]).concurrency == 1


def test_trial_larger_than_every_node_is_refused_with_both_sizes():
    with pytest.raises(ResourceError, match=r"3\.5 GiB of memory, but the largest node has 2\.0: lower --batch-size"):
        resources_for(NEED, asked(), [{"CPU": 8.0, "memory": 2 * GIB}])


def test_gpus_of_several_kinds_are_refused_by_name():
    a100 = {"CPU": 8.0, "GPU": 1.0, "accelerator_type:A100": 1.0}
    assert gpu_kind([H100, H100]) == "H100" and gpu_kind([{"CPU": 1.0}]) is None and gpu_kind([{"GPU": 1.0}]) == "GPU"
    with pytest.raises(ResourceError, match=r"several kinds \(A100, H100\).*--gpus-per-trial as a number"):
        gpu_kind([H100, a100])


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("baseline", {"base_width": 32, "depth": 4, "bottleneck_channels": None}),
        ("multiscale", {"base_width": 32, "depth": 4, "skip": "concat", "first_skip": 0}),
        ("feature_pyramid", {"width": 256, "bottleneck_channels": 192}),
    ],
)
def test_heaviest_job_has_the_values_of_the_most_weights(architecture, expected):
    job = heaviest(JobConfig(category="c", architecture=architecture), space(architecture))
    assert expected.items() <= job.model.items()
    assert set(job.loss_weights) == {path[13:] for path in space(architecture) if path.startswith("loss_weights/")}


def test_heaviest_job_has_the_largest_sizes_and_leaves_the_rest():
    ranges = {
        "batch_size": CategoricalDistribution((4, 32, 8)),
        "learning_rate": FloatDistribution(1e-4, 1e-2),
        "model/depth": IntDistribution(2, 3),
    }
    job = heaviest(JobConfig(category="c", architecture="baseline"), ranges)
    assert (job.batch_size, job.learning_rate, dict(job.model)) == (32, 1e-3, {"depth": 3})


def test_auto_with_nodes_to_come_or_several_workers_is_refused():
    for more, words in (({"autoscaling": True, "concurrency": 2}, "scales"), ({"workers": 2}, "cannot share a GPU")):
        with pytest.raises(Exception, match=words):
            asked(**more)
    with pytest.raises(Exception, match="a number of 0 or more, or auto"):
        asked(gpus="half")


@pytest.fixture
def task(demo, own_cache, tmp_path):
    def task(gpus=0.0, **settings):
        values = {"category": "brick", "architecture": "baseline", "image_size": 32, "epochs": 2, "evaluate_every": 2}
        job = JobConfig(**{**values, "model": {"base_width": 4, "depth": 2}, **settings})
        return Task(
            job_id="memory", job=job, dataset=demo, cache=own_cache, directory=JobDirectory(tmp_path), gpus=gpus
        )

    return task


def test_measured_trial_leaves_nothing_but_its_size(task, tmp_path):
    need = _train(task().to_dict())
    assert need["device"] == need["total"] == 0 and 50 << 20 < need["resident"] <= resident_bytes()
    assert not list(tmp_path.iterdir())


def test_measured_trial_that_diverges_has_a_size_and_one_without_images_a_reason(task):
    diverging = {"learning_rate": 1e30, "gradient_clip": 0.0, "schedule": "constant"}
    assert _train(task(**diverging).to_dict())["resident"]
    assert "nothing" in _train(task(category="nothing").to_dict())["failure"]


@pytest.mark.gpu
def test_measured_trial_on_a_gpu_takes_a_part_of_it(task):
    need = _train(task(gpus=1.0).to_dict())
    assert 0 < need["device"] < need["total"] == torch.cuda.get_device_properties(0).total_memory


@pytest.mark.gpu
def test_trial_that_needs_more_than_its_share_of_a_gpu_says_which(task, tmp_path):
    from msad.cluster.workers.job_worker import run

    wide = {"base_width": 128, "depth": 4}
    try:
        run(task(0.002, model=wide), report=lambda *_: None, resume_from=lambda: None)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "this trial had 0.002 of a GPU: raise --gpus-per-trial" in JobDirectory(tmp_path).read("failure")["reason"]


@pytest.mark.slow
def test_search_measures_once_and_resumes_without_measuring_again(demo, tmp_path):
    words = ["--dataset", str(demo), "--categories", "brick", "--architectures", "baseline,multiscale", "--trials", "1"]
    words += ["--image-size", "32", "--epochs", "2", "--set", "model/base_width=4", "--set", "model/depth=2"]

    def msad(*words):
        command = [sys.executable, "-m", "msad", "search", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    first = msad(*words, "--gpus-per-trial", "auto", "--name", "shared")
    assert first.returncode == 0, first.stderr
    assert "baseline: 0." in first.stderr and "at a time" in first.stderr
    file = tmp_path / "sweeps" / "shared" / "memory.json"
    assert len(json.loads(file.read_text())) == 2
    written = file.stat().st_mtime_ns
    again = msad("--resume", "shared")
    assert again.returncode == 0 and file.stat().st_mtime_ns == written, again.stderr
