"""The example configurations are valid and fit this program: every key, every architecture, every parameter."""

from __future__ import annotations

from pathlib import Path

import pytest

from msad.search.config import load, make_config
from msad.terminal.config_show import describe

EXAMPLES = sorted((Path(__file__).parents[2] / "docs" / "examples").glob("*.yaml"))


def test_examples_are_a_laptop_a_gpu_and_a_cluster():
    assert [path.stem for path in EXAMPLES] == ["cluster", "gpu", "laptop"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_a_valid_configuration(path):
    config = make_config(load(path))
    settings, studies = describe(config)
    assert config.name == path.stem and set(studies) == set(config.architectures)
    assert make_config(settings).trials == config.trials > 0
    assert all(study["searched"] and study["job"]["epochs"] > 0 for study in studies.values())


def test_examples_differ_where_the_machines_do():
    laptop, gpu, cluster = (make_config(load(EXAMPLES[index])) for index in (2, 1, 0))
    assert laptop.resources.gpus == 0 and laptop.address is None
    assert 0 < gpu.resources.gpus < 1 and len(gpu.architectures) > 1
    assert cluster.address and cluster.storage.is_absolute() and cluster.tracking_uri.startswith("http")
