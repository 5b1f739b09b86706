"""A sweep's configuration: one tree, all errors at once."""

from __future__ import annotations

import pytest
import yaml
from optuna.distributions import FloatDistribution

from models.corruptions import CorruptionConfig
from models.registry import architecture, architectures
from orchestrator.config import load, make_config
from orchestrator.errors import ConfigError
from orchestrator.job_config import JobConfig
from orchestrator.study import default_parameters


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


def test_winner_is_trained_at_least_once():
    with pytest.raises(ConfigError, match=r"final_seeds: .*greater than or equal to 1"):
        make_config({"name": "a", "dataset": "d", "final_seeds": 0})


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


@pytest.fixture
def patient_baseline(monkeypatch):
    """The baseline as if it stated settings to be trained with."""
    defaults = {"epochs": 300, "learning_rate": 3e-3, "corruption": {"probability": 0.25}}
    monkeypatch.setattr(architecture("baseline"), "training_defaults", defaults)


def test_job_without_settings_is_trained_as_its_architecture_says(patient_baseline):
    job = make_config({"name": "a", "dataset": "d"}).job("bottle", "baseline")
    assert (job.epochs, job.evaluate_every, job.learning_rate) == (300, 30, 3e-3)
    assert job.batch_size == JobConfig.batch_size  # what the architecture leaves open


def test_users_settings_come_before_the_architectures(patient_baseline):
    values = {"epochs": 40, "batch_size": 2, "parameters": {"learning_rate": 0.5}}
    job = make_config({"name": "a", "dataset": "d", **values}).job("bottle", "baseline")
    assert (job.epochs, job.batch_size, job.learning_rate, job.evaluate_every) == (40, 2, 0.5, 4)
    job = make_config({"name": "a", "dataset": "d", "parameters": {"epochs": 50}}).job("bottle", "baseline")
    assert (job.epochs, job.evaluate_every) == (50, 5)


def test_search_starts_from_the_architectures_training_defaults(patient_baseline):
    base = make_config({"name": "a", "dataset": "d"}).job("bottle", "baseline")
    space = {
        "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
        "corruption/probability": FloatDistribution(0.0, 1.0),
        "corruption/strength": FloatDistribution(0.0, 10.0),
    }
    expected = {"learning_rate": 3e-3, "corruption/probability": 0.25}
    assert default_parameters(base, space) == expected | {"corruption/strength": CorruptionConfig().strength}


def test_every_architectures_own_training_settings_are_a_valid_job():
    config = make_config({"name": "a", "dataset": "d", "architectures": architectures()})
    for name in config.architectures:
        job = config.job("bottle", name)
        assert 1 <= job.evaluate_every <= job.epochs


def test_load_of_a_bad_file_names_it(tmp_path):
    with pytest.raises(ConfigError, match="no such configuration file"):
        load(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text(yaml.safe_dump([1, 2]))
    with pytest.raises(ConfigError, match="found list"):
        load(tmp_path / "list.yaml")
    (tmp_path / "evil.yaml").write_text("a: !!python/object/apply:os.system ['true']")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load(tmp_path / "evil.yaml")


def test_parameters_go_to_the_architectures_that_have_them():
    config = make_config(
        {
            "name": "n",
            "dataset": ".",
            "architectures": ["feature_pyramid", "multiscale"],
            "parameters": {"model/base_width": 8, "loss_weights/dice": 2.0, "learning_rate": 0.01},
        }
    )
    assert config.job("c", "multiscale").flat().items() >= {"model/base_width": 8, "learning_rate": 0.01}.items()
    pyramid = config.job("c", "feature_pyramid")
    assert dict(pyramid.model) == {} and dict(pyramid.loss_weights) == {"dice": 2.0} and pyramid.learning_rate == 0.01
    assert "loss_weights/dice" not in config.job("c", "multiscale").flat()


def test_parameter_that_no_architecture_has_goes_to_all_to_be_refused():
    config = make_config({"name": "n", "dataset": ".", "parameters": {"model/base_with": 8}})
    assert all(config.job("c", name).model == {"base_with": 8} for name in config.architectures)


def test_own_architecture_named_in_a_sweep_may_be_imported(own):
    config = make_config({"name": "a", "dataset": "d", "architectures": ["my_detector:MyDetector", "baseline"]})
    assert config.job("gear", "my_detector:MyDetector").epochs == 60
    parameters = {"model/narrowest": 8, "model/depth": 2, "learning_rate": 0.01}
    config = config.model_copy(update={"parameters": parameters})
    assert config.parameters_of("my_detector:MyDetector") == {"model/narrowest": 8, "learning_rate": 0.01}
    assert config.parameters_of("baseline") == {"model/depth": 2, "learning_rate": 0.01}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architectures": ["nowhere:Mine"]}, "no module 'nowhere'"),
        ({"architectures": ["my_detector:MyDetectr"]}, "did you mean 'MyDetector'"),
        ({"architectures": ["my_detector:layer"]}, "not a class derived from"),
        ({"architectures": ["mine/my_detector.py:MyDetector"]}, "run msad in mine and give my_detector:NAME"),
        ({"architectures": ["baseline", "multiscale", "baseline"]}, "baseline: two studies would have one name"),
        ({"search_spaces": {"baselin": "my_spaces:SKIPS"}}, "'baselin' is none of this sweep's architectures"),
    ],
)
def test_own_architecture_or_space_that_is_wrong_is_refused(own, settings, message):
    with pytest.raises(ConfigError, match=message):
        make_config({"name": "a", "dataset": "d", **settings})
