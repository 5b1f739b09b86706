"""A sweep goes on with what it began with: other images are refused or get studies anew, other code is told."""

from __future__ import annotations

import dataclasses
import shutil

import optuna
import pytest
from PIL import Image

from msad.errors import ConfigError
from msad.models.synthesis import synthetic_defects
from msad.names import final_id
from msad.search.config import make_config
from msad.search.preflight import prepare
from msad.search.resuming import take_up
from msad.search.study import Study
from msad.search.sweep_plan import Code, read_plan
from msad.workspace import Workspace


@pytest.fixture
def kept(demo, category, own_cache, tmp_path):
    """A sweep of two architectures on a copy of one category, as it is kept before its first trial."""
    shutil.copytree(demo / category / "train", tmp_path / "data" / category / "train")
    settings = {"architectures": ("baseline", "multiscale"), "image_size": 64, "trials": 2}
    storage = tmp_path / "sweeps"
    config = make_config({"name": "a", "dataset": tmp_path / "data", "storage": storage, **settings})
    plan, workspace = prepare(config, own_cache), Workspace(storage / "a")
    workspace.root.mkdir(parents=True)
    plan.write(workspace)
    return config, workspace


@pytest.fixture
def good(kept, category):
    return sorted((kept[0].dataset / category / "train" / "good").iterdir())


@pytest.fixture
def go_on(kept, own_cache):
    def go_on(**options):
        return take_up(*kept, own_cache, **options)

    return go_on


def test_sweep_on_unchanged_images_goes_on_with_its_own_plan(kept, go_on, monkeypatch):
    # As an upgrade may have it: other epochs, parameters and ranges by default.
    monkeypatch.setattr("msad.search_spaces.multiscale.SPACE", {})
    monkeypatch.setattr("msad.models.multiscale.Multiscale.training_defaults", {"epochs": 7})
    resumed = go_on()
    assert resumed.plan == read_plan(kept[1]) and not resumed.replaced and not resumed.notes
    assert resumed.plan.studies[1].space and resumed.plan.studies[1].job.epochs != 7


def test_sweep_whose_images_have_changed_is_refused_with_the_first_of_them(go_on, good, category):
    for path in good[:4]:
        path.unlink()
    shutil.copyfile(good[5], good[6])
    shutil.copyfile(good[7], good[7].with_name("added.png"))
    with good[7].open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ConfigError) as error:
        go_on()
    text, folder = str(error.value), f"{category}/train/good"
    names = ", ".join(f"{folder}/{path.name}" for path in good[:3])
    assert f"  {category}: 4 images removed: {names}, ..." in text
    assert f"  {category}: 2 images changed: {folder}/{good[6].name}, {folder}/{good[7].name}" in text
    assert "added.png" in text and "--restart-changed" in text
    assert f"{category}/baseline, {category}/multiscale" in text


def test_sweep_whose_defects_are_drawn_otherwise_is_refused(go_on, monkeypatch, category):
    number = synthetic_defects.VERSION
    monkeypatch.setattr(synthetic_defects, "VERSION", number + 1)
    with pytest.raises(ConfigError, match=rf"synthetic_defects of version {number + 1} instead of {number}"):
        go_on()


def test_changed_studies_start_anew_beside_the_old_ones_when_asked(kept, go_on, good, category):
    before = read_plan(kept[1])
    good[0].unlink()
    resumed = go_on(restart_changed=True)
    assert resumed.replaced == before.studies
    assert [study.id for study in resumed.plan.studies] == [f"{category}-baseline.2", f"{category}-multiscale.2"]
    assert all(new.job == old.job for new, old in zip(resumed.plan.studies, before.studies, strict=True))
    assert any("1 image removed" in note and "started anew" in note for note in resumed.notes)
    assert resumed.plan.identity(before.studies[0].job) != before.identity(before.studies[0].job)
    resumed.plan.write(kept[1])
    assert go_on().plan == resumed.plan  # and once is enough


def test_category_that_is_gone_is_refused_before_a_study_begins(kept, go_on, category):
    (kept[0].dataset / category).rename(kept[0].dataset / "Renamed")
    with pytest.raises(ConfigError, match=f"'{category}' was called 'Renamed' now"):
        go_on(restart_changed=True)
    assert not (kept[1].root / "optuna.db").exists()


def test_category_that_is_removed_is_named(kept, go_on, demo, category):
    other = next(path for path in demo.iterdir() if path.is_dir() and path.name != category)
    shutil.copytree(other / "train", kept[0].dataset / other.name / "train")
    shutil.rmtree(kept[0].dataset / category)
    with pytest.raises(ConfigError, match=f"'{category}' was removed or renamed"):
        go_on()


def test_category_that_came_later_is_no_part_of_the_sweep(kept, go_on, demo, category):
    other = next(path for path in demo.iterdir() if path.is_dir() and path.name != category)
    shutil.copytree(other / "train", kept[0].dataset / other.name / "train")
    assert go_on().plan.categories == (category,)


def test_trials_can_be_raised_and_not_lowered(kept, go_on):
    resumed = go_on(trials=5)
    assert resumed.config.trials == 5 and [study.trials for study in resumed.plan.studies] == [5, 5]
    with pytest.raises(ConfigError, match="was given 2 trials per study: --trials can only be raised, 1 is fewer"):
        go_on(trials=1)


def test_trials_of_a_sweep_without_a_search_are_refused(kept, own_cache):
    config = kept[0].model_copy(update={"trials": 0})
    with pytest.raises(ConfigError, match="without a search: leave --trials away"):
        take_up(config, kept[1], own_cache, trials=5)


def test_other_code_is_told_with_both_versions_once(kept, go_on):
    old = dataclasses.replace(read_plan(kept[1]), code=(Code("1.0+abc", "0"),))
    old.write(kept[1])
    resumed = go_on()
    here = Code.here()
    assert resumed.notes == (f"warning: a was begun by msad 1.0+abc and goes on with {here.version}: they may differ",)
    assert [code.version for code in resumed.plan.code] == ["1.0+abc", here.version]
    resumed.plan.write(kept[1])
    assert go_on().notes == ()


def test_finished_studies_do_not_mind_images_that_have_changed_since(kept, go_on, good):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = optuna.storages.get_storage(kept[1].studies)
    for plan in read_plan(kept[1]).studies:
        study = Study(plan.job, plan.space, plan.trials, storage, "none", id=plan.id, name=plan.name)
        for value in (0.5, 0.6):
            study.tell(study.ask()[0], value=value)
        kept[1].job(final_id(plan.id)).write("test", {})
    good[0].unlink()
    assert not go_on().replaced
    with pytest.raises(ConfigError, match="1 image removed"):
        go_on(trials=3)  # so they are not finished any more
    (kept[1].job(final_id(plan.id)).path / "test.json").unlink()
    with pytest.raises(ConfigError, match="1 image removed"):
        go_on()


def test_sweep_of_a_version_without_plans_goes_on_and_says_so(kept, go_on, good):
    (kept[1].root / "plan.json").unlink()
    good[0].unlink()
    resumed = go_on()
    assert "kept no record of its images" in resumed.notes[0] and len(resumed.plan.studies) == 2


def test_studies_started_anew_have_the_size_that_the_images_have_now(kept, go_on, good, category):
    assert {study.job.image_size for study in read_plan(kept[1]).studies} == {64}
    for path in good:
        Image.open(path).resize((64, 160)).save(path)
    with pytest.raises(ConfigError, match="images changed"):
        go_on()
    anew = go_on(restart_changed=True).plan
    assert {study.job.image_size for study in anew.studies} == {"96x32"}
    assert {anew.identity(study.job).image_size for study in anew.studies} == {"96x32"}
