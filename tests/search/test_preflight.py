"""What is refused before anything starts, and that no test image is looked at meanwhile."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msad.data_io.errors import DataError
from msad.errors import ConfigError, ResourceError
from msad.models import registry
from msad.models.registry import architecture
from msad.search.config import make_config
from msad.search.preflight import FREE_BYTES, prepare
from msad.search.resuming import Resumed
from msad.search.sweep_plan import SweepPlan
from msad.training.identity import identify

WATCH = """
import sys
from pathlib import Path
from msad.search.config import make_config
from msad.search.preflight import prepare

root, opened = sys.argv[1], []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
prepare(make_config({"name": "a", "dataset": root, "image_size": 32, "storage": sys.argv[2]}), Path(sys.argv[3]))
inside = [path for path in opened if path.startswith(root)]
print(sum("/train/" in path for path in inside))
print(*[path for path in inside if "/test/" in path or "/ground_truth/" in path], sep="\\n", end="")
"""


@pytest.fixture
def make(demo, tmp_path):
    def make(**settings):
        small = {"architectures": ("baseline", "multiscale"), "image_size": 64, "storage": tmp_path / "sweeps"}
        return make_config({"name": "a", "dataset": demo, **small, **settings})

    return make


@pytest.fixture
def broken(demo, category, tmp_path):
    """A copy of one category with an undecodable image, one that is none, and a mask that is missing."""
    root = tmp_path / "broken"
    shutil.copytree(demo / category, root / category)
    images = sorted((root / category / "train" / "good").iterdir())
    images[0].write_bytes(images[0].read_bytes()[:200])
    images[1].write_bytes(b"no image at all")
    mask = min((root / category / "ground_truth").rglob("*.png"))
    mask.unlink()
    return root, [images[0].name, images[1].name]


def test_plan_names_every_category_with_its_identity_and_the_ranges(make, demo, own_cache):
    plan = prepare(make(parameters={"model/depth": 3}), own_cache)
    assert plan.categories == tuple(sorted(path.name for path in demo.iterdir() if path.is_dir()))
    assert {identity.digest for identity in plan.identities.values()} == {
        identify(demo, name, seed=0, image_size=64, cache=own_cache).digest for name in plan.categories
    }
    assert set(plan.spaces) == {"baseline", "multiscale"}
    assert "model/depth" not in plan.spaces["multiscale"] and "learning_rate" in plan.spaces["multiscale"]


def test_plan_without_a_search_has_no_ranges(make, category, own_cache):
    assert prepare(make(trials=0, categories=[category]), own_cache).spaces == {"baseline": {}, "multiscale": {}}


def test_plan_knows_the_identity_of_every_seed_of_a_winner(make, category, own_cache):
    config = make(final_seeds=2, categories=[category], architectures=["baseline"])
    plan, job = prepare(config, own_cache), config.job(category, "baseline")
    first, second = plan.identity(job), plan.identity(dataclasses.replace(job, seed=1))
    assert (first.seed, second.seed) == (0, 1) and first.validation != second.validation


def test_identity_changes_with_a_training_image_alone(make, demo, category, tmp_path, own_cache):
    def digest(**settings):
        config = make(**settings)
        return prepare(config, own_cache).identity(config.job(category, "baseline")).digest

    root = tmp_path / "copy"
    shutil.copytree(demo / category, root / category)
    first = digest(dataset=root)
    assert first == digest(categories=[category])
    good = sorted((root / category / "train" / "good").iterdir())
    shutil.rmtree(root / category / "test" / "good")
    assert digest(dataset=root) == first
    good[-1].unlink()
    assert digest(dataset=root) != first


def test_dataset_with_errors_is_refused_with_all_of_them(make, broken, own_cache):
    root, names = broken
    with pytest.raises(DataError, match="msad data check") as error:
        prepare(make(dataset=root), own_cache)
    assert "2 error(s)" in str(error.value) and all(name in str(error.value) for name in names)
    assert not (root.parent / "sweeps").exists()  # nothing is made for a sweep that is refused


def test_unknown_category_is_refused_with_the_nearest_name(make, category, own_cache):
    with pytest.raises(DataError, match=rf"{category}x.*{category}"):
        prepare(make(categories=[f"{category}x"]), own_cache)


def test_missing_dataset_is_refused_by_its_path(make, tmp_path, own_cache):
    with pytest.raises(DataError, match="nowhere"):
        prepare(make(dataset=tmp_path / "nowhere"), own_cache)


def test_image_size_that_the_deepest_model_cannot_halve_names_the_nearest(make, own_cache):
    """The space goes to depth 4: sides must be divisible by 16, although the default depth of 3 needs only 8."""
    with pytest.raises(ConfigError) as error:
        prepare(make(image_size=72), own_cache)
    text = str(error.value)
    assert "baseline" in text and "multiscale" in text and "divisible by 16" in text and "nearest is 64" in text
    assert prepare(make(image_size=72, parameters={"model/depth": 3}), own_cache).categories


def test_plan_gives_a_category_of_one_shape_its_rectangle(make, long, own_cache):
    plan = prepare(make(dataset=long), own_cache)
    assert {study.job.image_size for study in plan.studies} == {"96x32"}  # at 64 pixels, 160 × 64 as a share of 32
    identity = plan.identity(plan.studies[0].job)
    assert (identity.image_size, identity.view_size) == ("96x32", 55)
    assert SweepPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    [told] = [line for line in Resumed.whole(make(dataset=long), plan).told() if "brick: " in line]
    assert told == "brick: images are worked on at 96x32 pixels, height x width (--image-size)"
    for given, size in (("48x80", "48x80"), ("64x64", 64)):
        for setting in ({"image_size": given}, {"parameters": {"image_size": given}}):
            assert {study.job.image_size for study in prepare(make(dataset=long, **setting), own_cache).studies} == {
                size
            }


def test_plan_keeps_a_category_of_several_shapes_square(make, long, own_cache, tmp_path):
    shutil.copytree(long, tmp_path / "mixed")
    [first, *_] = sorted((tmp_path / "mixed" / "brick" / "train" / "good").iterdir())
    Image.open(first).resize((80, 160)).save(first)
    assert {study.job.image_size for study in prepare(make(dataset=tmp_path / "mixed"), own_cache).studies} == {64}


def test_plan_of_tiles_has_a_rectangle_where_they_fit(make, long, own_cache):
    tiles = {"dataset": long, "parameters": {"tiling/tile": 32}}
    for given, size in ((64, 64), (128, "192x96")):
        assert prepare(make(**tiles, image_size=given), own_cache).studies[0].job.image_size == size


def test_network_that_is_built_for_a_size_is_told_the_rectangle(make, long, own_cache, monkeypatch):
    class Sized(architecture("baseline")):
        def __init__(self, image_size=256, **parameters):
            super().__init__(**parameters)

    monkeypatch.setitem(registry._BUILDERS, "baseline", Sized)
    study = prepare(make(dataset=long, architectures=("baseline",), trials=0), own_cache).studies[0]
    assert study.job.model["image_size"] == study.job.image_size == "96x32"


def test_rectangle_that_an_architecture_cannot_halve_is_refused_with_the_nearest(make, long, own_cache):
    with pytest.raises(ConfigError, match=r"image size 72x40 does not suit .* divisible by 16; the nearest is 64x32"):
        prepare(make(dataset=long, image_size="72x40"), own_cache)


@pytest.mark.parametrize("given", ["tall", "416*160", 8, "416x8", 0])
def test_image_size_that_is_none_is_refused_in_words(make, given):
    with pytest.raises(ConfigError, match=r"image_size: .* \(given: "):
        make(image_size=given)


def test_misspelt_model_parameter_is_refused_with_the_nearest_name(make, own_cache):
    with pytest.raises(ConfigError, match=r"base_widht.*base_width"):
        prepare(make(parameters={"model/base_widht": 8}), own_cache)


def test_full_disk_is_refused_naming_the_folder(make, tmp_path, own_cache, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(2**40, 2**40 - 2**20, FREE_BYTES - 1))
    with pytest.raises(ResourceError, match=r"499 MiB free.*--storage") as error:
        prepare(make(), own_cache)
    assert str(tmp_path / "sweeps") in str(error.value)


def test_no_test_image_or_mask_is_opened(demo, tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", WATCH, str(demo), str(tmp_path / "sweeps"), str(tmp_path / "cache")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    train, *others = result.stdout.splitlines()
    assert int(train) > 0 and not others


def test_own_architecture_is_searched_in_its_own_space(make, own, own_cache):
    plan = prepare(make(architectures=["my_detector:MyDetector"], parameters={"model/width": 8}), own_cache)
    assert set(plan.spaces["my_detector:MyDetector"]) == {"learning_rate", "model/narrowest"}


def test_architecture_can_be_searched_in_another_space(make, own, own_cache):
    config = make(architectures=["multiscale", "baseline"], search_spaces={"multiscale": "my_spaces:SKIPS"})
    plan = prepare(config, own_cache)
    assert set(plan.spaces["multiscale"]) == {"learning_rate", "model/skip", "corruption/strength"}
    assert "loss_weights/l1" in plan.spaces["baseline"]


def test_architecture_with_nothing_to_search_gets_no_trials(make, own, own_cache):
    everything = {"model/width": 8, "model/narrowest": 4, "learning_rate": 0.001}
    config = make(architectures=["my_detector:MyDetector", "baseline"], parameters=everything)
    plan = prepare(config, own_cache)
    assert plan.spaces["my_detector:MyDetector"] == {}
    assert {study.job.architecture: study.trials for study in plan.studies} == {
        config.architectures[0]: 0,
        "baseline": 10,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{'model/widht': FloatDistribution(0, 1)}", "'model/widht', which its jobs have not; .*'model/width'"),
        ("{'learning_rate': (0, 1)}", r"'learning_rate' is \(0, 1\), not a distribution of optuna"),
        ("['learning_rate']", "is list; it must be a dictionary"),
        ("{'seed': IntDistribution(0, 9)}", "'seed': a study would choose the seed with the easiest .* --final-seeds"),
        ("{'image_size': IntDistribution(32, 64, step=32)}", "'image_size': trials of different sizes are judged on"),
        ("{'tiling/tile': IntDistribution(16, 32)}", "'tiling/tile': trials of different sizes are judged on"),
        ("{'objective': CategoricalDistribution(['validation_score'])}", "'objective': trials would be ranked by"),
    ],
)
def test_search_space_that_is_wrong_is_refused(make, own, own_cache, tmp_path, monkeypatch, text, message):
    (tmp_path / "wrong_space.py").write_text(f"from optuna.distributions import *\ndef space():\n    return {text}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wrong_space", raising=False)
    name = "my_detector:MyDetector"
    with pytest.raises(ConfigError, match=message):
        prepare(make(architectures=[name], search_spaces={name: "wrong_space:space"}), own_cache)


def test_own_architecture_that_breaks_the_contract_is_refused(make, own, own_cache, tmp_path, monkeypatch):
    text = (own / "my_detector.py").read_text().replace("dim=1, keepdim=True", "dim=1")
    (tmp_path / "flat_maps.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"flat_maps:MyDetector: the map 'difference' must be .* it is \(3, 64, 64\)"):
        prepare(make(architectures=["flat_maps:MyDetector"]), own_cache)


def test_tile_that_does_not_suit_is_refused_with_the_nearest(make, own_cache):
    prepare(make(architectures=("multiscale",), parameters={"tiling/tile": 32}, trials=0), own_cache)
    with pytest.raises(ConfigError, match=r"tiling/tile 36 does not suit multiscale: .*nearest is 32"):
        prepare(make(architectures=("multiscale",), parameters={"tiling/tile": 36}, trials=0), own_cache)


def test_plan_has_the_warnings_of_the_check_in_few_lines(make, demo, category, own_cache, tmp_path):
    root = tmp_path / "odd"
    shutil.copytree(demo / category, root / category)
    good = root / category / "train" / "good"
    for number in range(3):
        (good / f"{number}.gif").write_bytes(b"GIF89a")
    shutil.rmtree(root / category / "ground_truth")
    plan = prepare(make(dataset=root), own_cache)
    assert [warning.partition(": ")[2][:17] for warning in plan.warnings] == ["is no image file ", "no masks: what a "]
    assert "and 2 more" in plan.warnings[0]


def test_plan_finds_the_bit_depth_and_a_setting_replaces_it(make, demo, category, own_cache, tmp_path):
    root = tmp_path / "wide"
    for path in sorted((demo / category / "train" / "good").iterdir())[:5]:
        (root / category / "train" / "good").mkdir(parents=True, exist_ok=True)
        grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 4095 // 255
        grey[0, 0] = 4095
        Image.fromarray(grey).save(root / category / "train" / "good" / path.name)
    config = make(dataset=root)
    plan = prepare(config, own_cache)
    job = plan.studies[0].job
    assert {study.job.bit_depth for study in plan.studies} == {12} == {plan.identity(job).bit_depth}
    for setting in ({"bit_depth": 10}, {"parameters": {"bit_depth": 10}}):
        config = make(dataset=root, **setting)
        plan = prepare(config, own_cache)
        assert plan.studies[0].job.bit_depth == 10
        assert any("above the 1023 of 10 bits" in warning for warning in plan.warnings)
    with pytest.raises(ConfigError, match=r"bit_depth: .*10.* \(given: 11\)"):
        make(bit_depth=11)


def test_training_on_defects_is_refused_where_none_can_be_or_there_are_too_few(
    make, demo, with_known, category, own_cache
):
    asked = {"train_on_defects": True, "categories": [category]}
    with pytest.raises(ConfigError, match=f"{category}: --train-on-defects .* too few: 0 of 0 in .*validation"):
        prepare(make(**asked), own_cache)
    with pytest.raises(ConfigError, match="feature_memory learns from good images alone"):
        prepare(make(**asked, dataset=with_known, architectures=["feature_memory"]), own_cache)
    plan = prepare(make(**asked, dataset=with_known), own_cache)
    assert all(study.job.train_on_defects for study in plan.studies)
    assert all(identity.taught and identity.known for identity in plan.identities.values())
    assert SweepPlan.from_dict(json.loads(json.dumps(plan.to_dict()))).identities == plan.identities


def test_known_defect_that_is_a_test_image_too_is_refused_before_anything_starts(
    make, with_known, category, tmp_path, own_cache
):
    shutil.copytree(with_known, root := tmp_path / "data")
    image = min(path for path in (root / category / "validation").rglob("*.png") if "_mask" not in path.name)
    shutil.copy(image, root / category / "test" / image.parent.name / "copy.png")
    with pytest.raises(DataError, match=r"is the test image .*copy\.png too; a known defect chooses"):
        prepare(make(dataset=root), own_cache)
