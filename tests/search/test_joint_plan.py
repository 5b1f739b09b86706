"""One network for several products, planned: what is refused, what each product's row is called, what a resume does."""

from __future__ import annotations

import dataclasses
import shutil

import optuna
import pytest
from optuna.distributions import FloatDistribution
from PIL import Image

from msad.data_io.errors import DataError
from msad.errors import ConfigError
from msad.search.config import make_config
from msad.search.preflight import prepare
from msad.search.resuming import take_up
from msad.search.study import Study
from msad.search.sweep_plan import read_plan
from msad.training.identity import identify
from msad.training.job_config import JobConfig, joint_category
from msad.workspace import Workspace

BOTH = ("brick", "gear")


@pytest.fixture
def make(demo, tmp_path):
    def make(**settings):
        small = {"architectures": ("baseline", "multiscale"), "image_size": 64, "storage": tmp_path / "sweeps"}
        return make_config({"name": "a", "dataset": demo, "joint": BOTH, **small, **settings})

    return make


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"joint": ["brick"]}, "joint: brick alone is what --categories trains on: name two products or more"),
        ({"joint": ["brick", "gear", "brick"]}, "joint: brick: named twice; leave one away"),
        ({"resources": {"workers": 2}}, "trained by one worker: leave --workers-per-trial away"),
        ({"parameters": {"joint": ["brick", "gear"]}}, "unknown parameter 'joint'"),
    ],
)
def test_joint_that_cannot_be_is_refused(make, settings, message):
    with pytest.raises(ConfigError, match=message):
        make(**settings)


def test_product_that_the_dataset_has_not_is_refused_with_the_nearest(make, own_cache):
    with pytest.raises(DataError, match=r"no category 'brik'.*Did you mean 'brick'"):
        prepare(make(joint=("brik", "gear")), own_cache)


def test_plan_has_a_study_of_all_products_with_a_row_for_each_beside_the_separate_ones(make, demo, own_cache, tmp_path):
    plan = prepare(make(final_seeds=2), own_cache)
    keys = [study.key for study in plan.studies]
    assert keys[:4] == ["brick/baseline", "brick/multiscale", "gear/baseline", "gear/multiscale"]
    assert keys[4:] == ["brick + gear/baseline (joint)", "brick + gear/multiscale (joint)"]
    assert plan.categories == BOTH and len(plan.identities) == 2 * 2
    joint = plan.studies[4]
    assert joint.id == "brick + gear-baseline.joint"
    assert joint.rows == {
        "brick/baseline (joint)": "brick-baseline.joint",
        "gear/baseline (joint)": "gear-baseline.joint",
    }
    of_gear = joint.job.of_products()[1]
    assert plan.identity(of_gear) == identify(demo, "gear", seed=0, image_size=64, cache=own_cache)
    assert plan.digest(of_gear) == plan.digest(plan.studies[2].job) != plan.digest(joint.job)
    assert plan.digest(joint.job) != plan.digest(plan.studies[5].job.of_products()[0])
    again = joint.anew().anew()
    assert (again.id, again.parts[1]) == ("brick + gear-baseline.joint.3", "gear-baseline.joint.3")
    plan.write(Workspace(tmp_path))
    assert read_plan(Workspace(tmp_path)) == plan


def test_categories_that_are_named_are_those_trained_separately(make, own_cache):
    plan = prepare(make(categories=["gravel"], architectures=("baseline",)), own_cache)
    assert [study.key for study in plan.studies] == ["gravel/baseline", "brick + gear/baseline (joint)"]


def test_products_whose_photographs_come_to_other_sizes_are_refused_unless_one_is_given(
    make, demo, long, own_cache, tmp_path
):
    root = tmp_path / "data"
    shutil.copytree(demo / "gear", root / "gear")
    shutil.copytree(long / "brick", root / "brick")
    with pytest.raises(ConfigError) as error:
        prepare(make(dataset=root), own_cache)
    assert "brick at 96x32 pixels, gear at 64 pixels. Give --image-size HEIGHTxWIDTH" in str(error.value)
    plan = prepare(make(dataset=root, image_size="64x64"), own_cache)
    assert {study.job.image_size for study in plan.studies} == {64}


def test_products_of_other_bit_depths_are_refused(make, demo, own_cache, tmp_path):
    root = tmp_path / "data"
    for name in BOTH:
        shutil.copytree(demo / name, root / name)
    for file in (root / "gear" / "train" / "good").iterdir():
        grey = Image.open(file).convert("L").point(lambda value: value * 4, "I")
        grey.convert("I;16").save(file)  # 10 bits
    with pytest.raises(ConfigError, match=r"brick at 16 bits, gear at 10 bits. Give --bit-depth"):
        prepare(make(dataset=root), own_cache)


@pytest.fixture
def kept(make, demo, own_cache, tmp_path):
    for name in (*BOTH, "gravel"):
        shutil.copytree(demo / name / "train", tmp_path / "data" / name / "train")
    separate = {"categories": ("brick", "gravel"), "architectures": ("baseline",)}
    config, workspace = make(dataset=tmp_path / "data", **separate), Workspace(tmp_path / "sweeps" / "a")
    workspace.root.mkdir(parents=True)
    prepare(config, own_cache).write(workspace)
    return config, workspace


def test_study_whose_product_has_other_images_is_started_anew_with_all_of_its_products(kept, own_cache):
    config, workspace = kept
    assert take_up(config, workspace, own_cache).plan == read_plan(workspace)
    min((config.dataset / "gear" / "train" / "good").iterdir()).unlink()
    with pytest.raises(ConfigError, match=r"gear: 1 image removed(.|\n)*start brick \+ gear/baseline \(joint\) anew"):
        take_up(config, workspace, own_cache)
    resumed = take_up(config, workspace, own_cache, restart_changed=True)
    assert [study.key for study in resumed.replaced] == ["brick + gear/baseline (joint)"]
    assert [study.generation for study in resumed.plan.studies] == [1, 1, 2]
    assert resumed.plan.studies[2].parts == ("brick-baseline.joint.2", "gear-baseline.joint.2")


def test_study_is_finished_when_the_model_of_every_product_is_tested(kept, own_cache):
    config, workspace = kept
    config = config.model_copy(update={"trials": 0})
    shutil.rmtree(workspace.root)
    workspace.root.mkdir()
    prepare(config, own_cache).write(workspace)
    tested = ["brick-baseline", "gravel-baseline", "brick-baseline.joint"]
    for id in tested:
        workspace.final(id).write("test", {})
    assert take_up(config, workspace, own_cache).going_on == {*BOTH}
    workspace.final("gear-baseline.joint").write("test", {})
    assert not take_up(config, workspace, own_cache).going_on


def test_job_of_several_products_survives_json_and_one_of_one_says_nothing_of_it():
    job = JobConfig(category=joint_category(BOTH), architecture="baseline", joint=list(BOTH))
    assert JobConfig.from_dict(job.to_dict()) == job and job.joint == BOTH and job.is_whole
    assert [one.category for one in job.of_products()] == ["brick", "gear"]
    assert not any(one.is_whole for one in job.of_products()) and job.label == "baseline (joint)"
    alone = dataclasses.replace(job, joint=())
    assert "joint" not in alone.to_dict() and alone.of_products() == (alone,) and alone.label == "baseline"
    assert joint_category(("a", "b", "c")) == "a + b + c" and joint_category("abcd") == "a + b + 2 more"
    with pytest.raises(ValueError, match=r"joint is a; it must be two products or more"):
        JobConfig(category="a", architecture="baseline", joint=("a",))


def test_each_product_has_the_trials_of_the_study_of_all(tmp_path):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    job = JobConfig(category=joint_category(BOTH), architecture="baseline", joint=BOTH)
    space = {"learning_rate": FloatDistribution(1e-4, 1e-2, log=True)}
    whole = Study(job, space, 2, optuna.storages.InMemoryStorage(), "none")
    part = whole.of_product("gear", "gear-baseline.joint")
    for value in (0.5, 0.9):
        whole.tell(whole.ask()[0], value=value)
    assert (whole.key, part.key) == ("brick + gear/baseline (joint)", "gear/baseline (joint)")
    assert part.whole is whole and whole.whole is whole
    assert part.counts() == whole.counts() and part.best().value == 0.9
    assert part.winner() == dataclasses.replace(whole.winner(), category="gear")
