"""How a cluster is divided among trials, by arithmetic."""

from __future__ import annotations

import pytest

from msad.cluster.trial_resources import TrialResources, divide
from msad.errors import ConfigError, ResourceError
from msad.search.config import make_config

LAPTOP = [{"CPU": 8.0, "memory": 1e9}]
GPU_NODES = [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 4.0, "GPU": 1.0}]


def asked(executor="auto", **resources):
    return make_config({"name": "a", "dataset": "d", "executor": executor, "resources": resources})


def test_one_machine_without_gpu_runs_directly_as_many_as_fit():
    assert divide(asked(), LAPTOP) == TrialResources("direct", 1.0, 0.0, 8)
    assert divide(asked(cpus=3), LAPTOP).concurrency == 2


def test_gpus_are_taken_where_there_are_any():
    assert divide(asked(), GPU_NODES) == TrialResources("train", 1.0, 1.0, 3)


def test_trials_are_not_timed_on_a_gpu_where_there_is_none():
    config = make_config({"name": "a", "dataset": "d", "latency_device": "cuda"})
    assert divide(config, GPU_NODES).gpus == 1
    with pytest.raises(ResourceError, match="no node has one; leave --latency-device away"):
        divide(config, LAPTOP)


def test_gpus_of_zero_leave_the_gpus_alone():
    assert divide(asked(gpus=0), [{"CPU": 4.0, "GPU": 1.0}]) == TrialResources("direct", 1.0, 0.0, 4)


@pytest.mark.parametrize(("gpus", "concurrency"), [(0.5, 6), (0.25, 12), (0.1, 20), (1 / 3, 9)])
def test_fraction_of_a_gpu_is_shared_by_as_many_trials_as_fit(gpus, concurrency):
    """0.1: ten on each GPU of the first node by its GPUs, but its 16 CPUs and the other's 4 allow 20 in all."""
    assert divide(asked(gpus=gpus), GPU_NODES).concurrency == concurrency


def test_fraction_of_a_cpu_is_not_lost_to_rounding():
    assert divide(asked(cpus=0.1), [{"CPU": 1.0}]).concurrency == 10


def test_two_nodes_without_gpu_use_train_jobs():
    assert divide(asked(), [{"CPU": 2.0}, {"CPU": 3.0}]) == TrialResources("train", 1.0, 0.0, 5)


def test_room_on_several_nodes_is_counted_per_node():
    assert divide(asked(cpus=2), [{"CPU": 3.0}, {"CPU": 3.0}]).concurrency == 2


def test_concurrency_asked_for_is_the_most_and_never_more_than_fits():
    assert divide(asked(concurrency=3), LAPTOP).concurrency == 3
    assert divide(asked(concurrency=100), LAPTOP).concurrency == 8


def test_executor_asked_for_is_kept():
    assert divide(asked("train"), LAPTOP).executor == "train"
    assert divide(asked("direct"), GPU_NODES).executor == "direct"


def test_more_than_the_largest_node_has_is_refused_naming_every_option():
    with pytest.raises(ResourceError) as error:
        divide(asked(cpus=32, gpus=4), GPU_NODES)
    text = str(error.value)
    assert "4 GPUs per trial" in text and "has 2" in text and "--gpus-per-trial" in text
    assert "32 CPUs per trial" in text and "has 16" in text and "--cpus-per-trial" in text


def test_gpu_asked_for_where_there_is_none_is_refused():
    with pytest.raises(ResourceError, match=r"0\.5 GPUs per trial .* has 0: lower --gpus-per-trial"):
        divide(asked(gpus=0.5), LAPTOP)


def test_workers_of_a_trial_are_counted_together():
    assert divide(asked(workers=2), LAPTOP) == TrialResources("train", 1.0, 0.0, 4, workers=2)
    assert divide(asked(workers=2), GPU_NODES).concurrency == 1  # three GPUs are one group of two
    assert divide(asked(workers=2, autoscaling=True, gpus=1, concurrency=4), []).workers == 2


def test_more_workers_per_trial_than_fit_are_refused_with_what_fits():
    with pytest.raises(ResourceError, match=r"4 workers per trial .* room for 3: lower --workers-per-trial"):
        divide(asked(workers=4), GPU_NODES)


def test_workers_of_a_trial_in_the_direct_executor_are_refused():
    with pytest.raises(ConfigError, match="several workers per trial need --executor train"):
        asked("direct", workers=2)
