"""Datasets in layouts other than MVTec AD's, from the command to the measurement."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from msad.bundle.evaluation import evaluate
from msad.data_io.test_split import TestSplit
from msad.errors import ConfigError
from msad.search.config import make_config
from msad.search.preflight import prepare
from msad.terminal import cli
from tests.sweep.test_sweep import SMALL, msad, runs, watched


@pytest.fixture(scope="module")
def kolektor(demo, tmp_path_factory) -> Path:
    """The demo's bricks laid out as KolektorSDD2 is, defective ones in the training folder too."""
    root = tmp_path_factory.mktemp("ksdd2")
    good = sorted((demo / "brick" / "train" / "good").iterdir())
    split = TestSplit(demo, "brick")
    defective = [(path, mask) for path, mask in zip(split.paths, split.masks(), strict=True) if mask.any()]
    blank = np.zeros_like(defective[0][1])
    train = [(path, blank) for path in good] + defective[:2]
    test = [(path, blank) for path, label in zip(split.paths, split.labels, strict=True) if not label] + defective[2:]
    for part, pairs in (("train", train), ("test", test)):
        (root / part).mkdir()
        for number, (path, mask) in enumerate(pairs, 10000):
            shutil.copy(path, root / part / f"{number}.png")
            Image.fromarray(mask.astype(np.uint8) * 255).save(root / part / f"{number}_GT.png")
    return root


def invoke(*words: str | Path) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(cli.msad, [str(word) for word in words])


@pytest.mark.slow
def test_training_on_another_layout_ends_measured_and_opens_no_test_file_before(kolektor, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(kolektor, root)
    (root / "Class1" / "Train").mkdir(parents=True)  # looks like DAGM too, so the name has to reach every worker
    words = ("train", "--dataset", str(root), "--architectures", "baseline", "--name", "surface")
    done, opened = watched(root, tmp_path, *words, "--layout", "kolektor_sdd2", *SMALL)
    assert done.returncode == 0, done.stderr
    test = [when for when, path in opened if path.startswith(str(root / "test"))]
    train = [when for when, path in opened if path.startswith(str(root / "train"))]
    assert train and test and max(train) < min(test)
    (study,) = runs(tmp_path, "surface")["study"]
    assert study.data.tags["msad.category"] == "kolektor_sdd2"
    split = TestSplit(kolektor, "kolektor_sdd2")
    assert study.data.metrics["test_good_images"] == np.sum(split.labels == 0)
    assert study.data.metrics["test_defective_images"] == np.sum(split.labels == 1)
    assert 0 <= study.data.metrics["test_pixel_auroc"] <= 1

    model = tmp_path / "sweeps" / "surface" / "jobs" / "kolektor_sdd2-baseline-final" / "bundle"
    assert json.loads((model / "bundle.json").read_text())["provenance"]["layout"] == "kolektor_sdd2"
    measured = invoke("evaluate", model, root, "--layout", "kolektor_sdd2")
    assert f"{study.data.metrics['test_image_auroc']:.4f}" in measured.output
    assert "looks like kolektor_sdd2" in str(invoke("evaluate", model, root).exception)


@pytest.mark.slow
def test_good_images_alone_end_with_a_model_and_no_test_figures(demo, tmp_path):
    shutil.copytree(demo / "gear" / "train" / "good", tmp_path / "washer" / "good")
    words = ("train", "--dataset", "washer", "--architectures", "baseline", "--name", "own")
    done = msad(*words, *SMALL, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no test images to measure it on" in done.stderr
    (study,) = runs(tmp_path, "own")["study"]
    assert study.data.metrics["validation_score"] > 0
    assert not any(name.startswith("test_") for name in study.data.metrics)
    model = tmp_path / "sweeps" / "own" / "jobs" / "washer-baseline-final" / "bundle"
    refused = invoke("evaluate", model, tmp_path / "washer")
    assert "no test images there; expected a folder bad" in str(refused.exception)


def test_evaluation_without_masks_has_figures_of_images_and_none_of_pixels(demo, bundle, tmp_path):
    root = tmp_path / "washer"
    shutil.copytree(demo / "gear" / "train" / "good", root / "good")
    for defect_type in ("hole", "stain"):
        shutil.copytree(demo / "gear" / "test" / defect_type, root / "bad" / defect_type)
    result = evaluate(bundle, root, "washer", None)
    assert 0 <= result.metrics["image_auroc"] <= 1
    assert not {"pixel_auroc", "aupro_30", "pixel_prevalence"} & set(result.metrics)
    assert list(result.per_defect_type.index) == ["hole", "stain"]


def test_plan_of_a_dataset_names_its_layout(kolektor, own_cache, tmp_path):
    settings = {"name": "a", "dataset": kolektor, "image_size": 64, "storage": tmp_path}
    assert prepare(make_config(settings), own_cache).layout == "kolektor_sdd2"


def test_csv_of_the_same_images_gives_the_same_plan_and_the_same_figures(demo, bundle, category, own_cache, tmp_path):
    """A layout's settings go with its name, into the plan as into the measurement."""
    shutil.copytree(demo / category, root := tmp_path / category)
    lines = ["image,kind,part,mask"]
    for path in sorted(root.glob("t*/*/*.png")):
        part, kind = path.parent.parent.name, path.parent.name
        mask = root / "ground_truth" / kind / f"{path.stem}_mask.png"
        named = mask.relative_to(root) if mask.exists() else ""
        lines.append(f"{path.relative_to(root)},{'fine' if kind == 'good' else kind},{part},{named}")
    (root / "list.csv").write_text("\n".join(lines))
    layout = "csv:label=kind,split=part,good=fine"
    settings = {"name": "a", "image_size": 32, "storage": tmp_path, "architectures": ["baseline"]}
    plan = prepare(make_config({**settings, "dataset": root, "layout": layout}), own_cache)
    reference = prepare(make_config({**settings, "dataset": demo, "categories": [category]}), own_cache)
    assert plan.layout == layout and plan.categories == (category,)
    (identity,), (other,) = plan.identities.values(), reference.identities.values()
    assert identity.layout == layout and (identity.train, identity.validation) == (other.train, other.validation)
    found, expected = evaluate(bundle, root, category, None, layout=layout), evaluate(bundle, demo, category, None)
    for name in ("image_auroc", "pixel_prauc", "aupro_30", "good_images", "misses"):
        assert found.metrics[name] == expected.metrics[name]


def test_unknown_layout_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"layout: no layout 'kolektor_sd2'. Did you mean 'kolektor_sdd2'\?"):
        make_config({"name": "a", "dataset": "somewhere", "layout": "kolektor_sd2"})


def test_data_check_takes_a_layout(kolektor):
    assert "layout kolektor_sdd2" in invoke("data", "check", kolektor).output
    assert "laid out as visa" in invoke("data", "check", kolektor, "--layout", "visa").output
