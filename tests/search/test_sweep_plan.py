"""What a sweep's settings come to is kept whole, and a study is not changed by defaults that change."""

from __future__ import annotations

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from msad.errors import ConfigError
from msad.search.config import make_config
from msad.search.preflight import prepare
from msad.search.sweep_plan import plan_study, read_plan
from msad.search_spaces import space
from msad.training.job_config import JobConfig
from msad.training.parameters import written_out
from msad.workspace import Workspace

SPACE = {
    "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
    "model/depth": IntDistribution(2, 3),
    "model/skip": CategoricalDistribution(("gated", None, True, 0.5)),
}


@pytest.fixture
def plan(demo, category, own_cache, tmp_path):
    both = {"architectures": ("feature_pyramid", "multiscale"), "categories": [category], "final_seeds": 2}
    config = make_config({"name": "a", "dataset": demo, "image_size": 64, "storage": tmp_path / "sweeps", **both})
    return prepare(config, own_cache)


def test_plan_comes_back_from_its_folder_as_it_was(plan, tmp_path):
    plan.write(Workspace(tmp_path))
    assert read_plan(Workspace(tmp_path)) == plan
    assert read_plan(Workspace(tmp_path / "older")) is None


def test_plan_leaves_nothing_to_defaults(plan):
    for study in plan.studies:
        searched = any(path.startswith("loss_weights/") for path in study.space)
        full = written_out(study.job).to_dict() | ({"loss_weights": {}} if searched else {})
        assert study.job.to_dict() == full and study.job.epochs and study.job.batch_size and study.job.model
    assert plan.layout == "mvtec_ad" and plan.code[0].version
    assert sorted(identity.seed for identity in plan.identities.values()) == [0, 1]


def test_plan_that_is_damaged_is_refused_by_its_path(tmp_path):
    for text in ("", "[]", '{"studies": [{}]}', "{"):
        (tmp_path / "plan.json").write_text(text)
        with pytest.raises(ConfigError, match=r"plan\.json: damaged"):
            read_plan(Workspace(tmp_path))


@pytest.mark.parametrize("architecture", ["baseline", "multiscale", "feature_pyramid"])
def test_planned_study_trains_what_its_job_would_without_a_plan(architecture):
    job = JobConfig(category="c", architecture=architecture)
    fixed = plan_study(job, {}, 5, "a")
    assert written_out(fixed.job) == written_out(job) and fixed.trials == 0
    searched = plan_study(job, space(architecture), 5, "a")
    # A trial has the weights that are searched and no others, as before.
    trial = searched.job.with_parameters({"loss_weights/x": 1.0})
    assert dict(trial.loss_weights) == {"x": 1.0} and searched.trials == 5


def test_study_that_is_started_anew_has_names_of_its_own():
    first = plan_study(JobConfig(category="c", architecture="multiscale"), SPACE, 5, "c-multiscale")
    second, third = first.anew(), first.anew().anew()
    assert [study.id for study in (first, second, third)] == ["c-multiscale", "c-multiscale.2", "c-multiscale.3"]
    assert [study.name for study in (first, second, third)] == ["c/multiscale", "c/multiscale #2", "c/multiscale #3"]
    assert first.key == third.key and first.job == third.job and first.space == third.space
