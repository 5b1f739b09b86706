from __future__ import annotations

import optuna
import pytest
import torch
from optuna.distributions import CategoricalDistribution

from msad import search_spaces
from msad.models.errors import ModelError
from msad.models.plugins import named_entry_points
from msad.models.registry import architecture, architectures, build, default_parameters, use
from msad.models.synthesis.augmentation import AugmentationConfig
from msad.models.synthesis.corruptions import CorruptionConfig, Corruptor
from msad.training.job_config import JobConfig

EVERY = pytest.mark.parametrize("name", architectures())


def defaults(name):
    """The architecture's default configuration, with everything written out."""
    corruption = CorruptionConfig()
    return JobConfig(
        category="any",
        architecture=name,
        model=default_parameters(name),
        loss_weights=architecture(name).default_loss_weights,
        corruption={"probability": corruption.probability, "strength": corruption.strength},
        augmentation={"kind": AugmentationConfig().kind},
        **{key: value for key, value in architecture(name).training_defaults.items() if key == "learning_rate"},
    )


def samples(name, count):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [study.ask(search_spaces.space(name)).params for _ in range(count)]


def test_every_architecture_has_a_space():
    assert search_spaces.architectures() == architectures()


def test_space_of_an_architecture_that_has_none_is_empty(own, monkeypatch):
    monkeypatch.delattr(use("my_detector:MyDetector"), "search_space")
    assert search_spaces.space("my_detector:MyDetector") == {}


@EVERY
def test_space_contains_the_defaults(name):
    flat = defaults(name).flat()
    for path, distribution in search_spaces.space(name).items():
        if isinstance(distribution, CategoricalDistribution):
            assert flat[path] in distribution.choices, path
        else:
            assert distribution.low <= flat[path] <= distribution.high, path


@EVERY
def test_space_names_every_default_loss_weight(name):
    weights = {path.partition("/")[2] for path in search_spaces.space(name) if path.startswith("loss_weights/")}
    assert weights >= set(architecture(name).default_loss_weights)  # a weight that is not named would be off


@pytest.mark.parametrize("name", [name for name in architectures() if architecture(name).loss_terms])
def test_space_random_samples_train_one_step(name):
    torch.manual_seed(0)
    for parameters in samples(name, 6):
        job = JobConfig(category="any", architecture=name).with_parameters(parameters)
        narrow = {"width": 8} if name.startswith("feature_") else {"base_width": 4}  # to be quick
        model = build(name, **{**job.model, **narrow})
        clean = torch.rand(2, 3, 64, 64)
        corrupted, mask = Corruptor(CorruptionConfig(**job.corruption))(clean, torch.Generator().manual_seed(0))
        optimizer = torch.optim.AdamW(model.parameters(), lr=job.learning_rate)
        terms = model.losses(clean, corrupted, mask, terms=job.loss_weights)
        loss = sum(job.loss_weights[term] * value for term, value in terms.items())
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss) and all(torch.isfinite(p).all() for p in model.parameters())


@EVERY
def test_space_full_width_samples_build(name):
    for parameters in samples(name, 3):
        model = JobConfig(category="any", architecture=name).with_parameters(parameters).model
        assert build(name, **model).size_multiple <= 32


def test_space_is_a_copy():
    search_spaces.space("baseline").clear()
    assert search_spaces.space("baseline")


def test_space_unknown_architecture_names_the_nearest():
    with pytest.raises(ModelError, match="unknown architecture 'basline'; did you mean 'baseline'\\?"):
        search_spaces.space("basline")


def test_space_of_an_own_architecture_is_its_attribute(own):
    use("my_detector:MyDetector")
    assert set(search_spaces.space("my_detector:MyDetector")) == {"learning_rate", "model/width", "model/narrowest"}


def test_space_from_elsewhere_replaces_the_architectures(own):
    assert set(search_spaces.space("multiscale", "my_spaces:SKIPS")) == {
        "learning_rate",
        "model/skip",
        "corruption/strength",
    }


def test_space_of_a_package_is_found_by_its_name(own, tmp_path, monkeypatch):
    folder = tmp_path / "spaces-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: spaces\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[msad.search_spaces]\nskips = my_spaces:SKIPS\n")
    monkeypatch.syspath_prepend(tmp_path)
    named_entry_points.cache_clear()
    try:
        assert "model/skip" in search_spaces.space("multiscale", "skips")
        with pytest.raises(ModelError, match="unknown search space 'skip'; did you mean 'skips'"):
            search_spaces.space("multiscale", "skip")
    finally:
        named_entry_points.cache_clear()
