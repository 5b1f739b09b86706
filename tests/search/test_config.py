"""A sweep's configuration: one tree, all errors at once."""

from __future__ import annotations

import pytest
import yaml
from optuna.distributions import FloatDistribution

from msad.errors import ConfigError
from msad.models.registry import architecture, architectures
from msad.models.synthesis.corruptions import CorruptionConfig
from msad.search.config import load, make_config, overlay
from msad.search.study import default_parameters
from msad.training.job_config import JobConfig


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latency_budget": 0}, "latency_budget: .*greater than 0"),
        ({"latency_budget": float("nan")}, "latency_budget: "),
        ({"latency_budget": 20, "trials": 0}, "chooses among trials, and there is none: leave latency_budget away"),
        ({"latency_device": "tpu"}, "latency_device: .*'cpu' or 'cuda'"),
        ({"latency_device": "cuda", "resources": {"gpus": 0}}, "no GPU to be timed on: give --gpus-per-trial"),
    ],
)
def test_budget_of_time_that_nothing_can_keep_to_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_config({"name": "a", "dataset": "d", **settings})


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
    fixed = {"architectures": ["baseline"], "parameters": {"model/base_width": 8}}
    config = make_config({"name": "a", "dataset": "d", "epochs": 40, "seed": 3, **fixed})
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


def test_epochs_that_are_given_take_the_place_of_an_architectures_own_steps(monkeypatch):
    monkeypatch.setattr(architecture("baseline"), "training_defaults", {"epochs": 20, "steps": 400})

    def asked(**values):
        config = make_config({"name": "a", "dataset": "d", "architectures": ["baseline"], **values})
        job = config.joint_job("baseline") if config.joint else config.job("bottle", "baseline")
        return job.epochs, job.steps

    assert asked() == (20, 400)
    assert asked(epochs=3) == (3, 0)
    assert asked(parameters={"epochs": 3}) == (3, 0)
    assert asked(parameters={"steps": 50}) == (20, 50)
    assert asked(epochs=3, parameters={"steps": 50}) == (3, 50)
    assert asked(joint=["a", "b", "c"]) == (20, 1200)  # as many for each product
    assert asked(joint=["a", "b", "c"], parameters={"steps": 50}) == (20, 50)


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


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"trails": 3}, "unknown setting 'trails'; did you mean 'trials'?"),
        ({3: 3}, "unknown setting 3; known are"),
        ({"resources": {"cpu": 1}}, "resources: unknown setting 'cpu'; did you mean 'cpus'?"),
        ({"architectures": ["basline"]}, "unknown architecture 'basline'; did you mean 'baseline'?"),
        ({"parameters": {"learning_rat": 1}}, "unknown parameter 'learning_rat'; did you mean 'learning_rate'?"),
        ({"parameters": {"model/base_widht": 8}}, "'model/base_widht'; did you mean 'model/base_width'?"),
        ({"parameters": {"model": {"base_widht": 8}}}, "'model/base_widht'; did you mean 'model/base_width'?"),
        ({"parameters": {"modle/depth": 3}}, "'modle/depth'; did you mean 'model/depth'?"),
        ({"parameters": {"loss_weights/sism": 1}}, "'loss_weights/sism'; did you mean 'loss_weights/ssim'?"),
        ({"parameters": {"corruption/probabilty": 1}}, "did you mean 'corruption/probability'?"),
        ({"parameters": {"augmentation/knid": "none"}}, "did you mean 'augmentation/kind'?"),
        ({"parameters": {"tiling": {"tiel": 32}}}, "'tiling/tiel'; did you mean 'tiling/tile'?"),
        ({"parameters": {"model": 3}}, "unknown parameter 'model'"),
        ({"parameters": {"category": "gear"}}, "unknown parameter 'category'"),
    ],
    ids=str,
)
def test_misspelt_key_at_any_level_is_refused_with_the_nearest_name(values, expected):
    with pytest.raises(ConfigError) as error:
        make_config({"name": "a", "dataset": "d", "architectures": ["multiscale"], **values})
    assert expected in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"loss_weights/ssim": -1}, "loss_weights/ssim is -1; it must be a number, 0 (off) or more"),
        ({"loss_weights/ssim": "much"}, "loss_weights/ssim is 'much'"),
        ({"corruption/probability": 2}, "probability is 2; it must be between 0 and 1"),
        ({"corruption/probability": "often"}, "corruption: {'probability': 'often'} holds a value of the wrong type"),
        ({"augmentation/kind": "rotate"}, "kind is 'rotate'; did you mean 'rotated'?"),
        ({"tiling/tile": 256}, "a tile must be smaller than the image"),
        ({"tiling/tile": 64, "tiling/overlap": 40}, "it must be 0 to half a tile, 32 pixels"),
    ],
    ids=str,
)
def test_value_out_of_range_is_refused_in_every_group(parameters, expected):
    with pytest.raises(ConfigError) as error:
        make_config({"name": "a", "dataset": "d", "architectures": ["multiscale"], "parameters": parameters})
    assert expected in str(error.value)


def test_nested_parameters_are_the_same_as_slash_paths():
    nested = {"learning_rate": 1e-3, "model": {"depth": 3}, "corruption": {"strength": 0.5}}
    config = make_config({"name": "a", "dataset": "d", "architectures": ["multiscale"], "parameters": nested})
    assert config.parameters == {"learning_rate": 1e-3, "model/depth": 3, "corruption/strength": 0.5}
    laid = overlay({"parameters": nested, "seed": 1}, {"parameters": {"model/depth": 4}})
    assert laid == {"parameters": {**config.parameters, "model/depth": 4}, "seed": 1}


def test_load_refuses_several_sweeps_in_a_file(tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text("name: a\n---\nname: b\n")
    with pytest.raises(ConfigError, match="holds 2 YAML documents"):
        load(file)
    file.write_text("")
    with pytest.raises(ConfigError, match="`key: value` lines, found NoneType"):
        load(file)


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
