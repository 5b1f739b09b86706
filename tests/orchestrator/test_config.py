"""A sweep's configuration: one tree, all errors at once."""

from __future__ import annotations

import pytest
import yaml

from orchestrator.config import load, make_config
from orchestrator.errors import ConfigError


def test_config_survives_yaml(tmp_path):
    config = make_config(
        {"name": "a", "dataset": "d", "categories": ["x"], "resources": {"gpus": 0.5}, "parameters": {"batch_size": 4}}
    )
    file = tmp_path / "sweep.yaml"
    file.write_text(config.to_yaml())
    assert make_config(load(file)) == config


def test_config_with_several_mistakes_names_them_all():
    with pytest.raises(ConfigError) as error:
        make_config(
            {"name": "a/b", "dataset": "d", "trials": -1, "architectures": ["multiscal"], "resources": {"cpus": 0}}
        )
    text = str(error.value)
    assert "did you mean 'multiscale'" in text
    assert all(word in text for word in ("name", "trials", "resources.cpus"))


def test_misspelt_key_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"unknown setting 'epoch'; did you mean 'epochs'"):
        make_config({"name": "a", "dataset": "d", "epoch": 3})
    with pytest.raises(ConfigError, match=r"resources: unknown setting 'gpu'; did you mean 'gpus'"):
        make_config({"name": "a", "dataset": "d", "resources": {"gpu": 1}})


def test_fixed_parameter_out_of_range_is_refused_before_anything_starts():
    with pytest.raises(ConfigError, match="learning_rate is -1"):
        make_config({"name": "a", "dataset": "d", "parameters": {"learning_rate": -1}})


def test_job_takes_the_sweeps_settings():
    config = make_config({"name": "a", "dataset": "d", "epochs": 40, "seed": 3, "parameters": {"model/base_width": 8}})
    job = config.job("bottle", "baseline")
    assert (job.epochs, job.seed, job.evaluate_every, job.model) == (40, 3, 4, {"base_width": 8})


def test_load_of_a_bad_file_names_it(tmp_path):
    with pytest.raises(ConfigError, match="no such configuration file"):
        load(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text(yaml.safe_dump([1, 2]))
    with pytest.raises(ConfigError, match="found list"):
        load(tmp_path / "list.yaml")
    (tmp_path / "evil.yaml").write_text("a: !!python/object/apply:os.system ['true']")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load(tmp_path / "evil.yaml")
