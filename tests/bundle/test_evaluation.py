"""Evaluation of a bundle on the demo's test split, its figures against their definitions."""

from __future__ import annotations

import ast
import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy import ndimage
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score, roc_curve

import msad.data_io.masks
from msad.bundle.bundles import Bundle
from msad.bundle.evaluation import OF_PIXELS, PER_DEFECT_TYPE, evaluate, save_tables
from msad.bundle.images import fit_map
from msad.bundle.model_card import _results
from msad.data_io.errors import DataError
from msad.errors import ConfigError
from msad.models.roi import Roi
from msad.pictures.gallery import save_evaluation
from msad.terminal.evaluation_text import format_evaluation
from msad.training.identity import identify

REPOSITORY = Path(__file__).parents[2]
ESTIMATED = ("image_auroc", "image_prauc", "f1", "recall", "false_alarm_rate", "recall_at_fpr")
METRICS = {
    *(f"{name}{end}" for name in ESTIMATED for end in ("", "_low", "_high")),
    *("image_prevalence", "target_fpr", "pixel_auroc", "pixel_prauc", "pixel_prevalence", "aupro_30", "aupro_05"),
    *("false_positives", "misses", "good_images", "defective_images", "masked_images", "latency_ms"),
    *("false_regions", "defect_regions", "found_regions"),
}


@pytest.fixture(scope="module")
def evaluation(bundle, demo, category):
    return evaluate(bundle, demo, category, None)


def test_evaluate_gives_every_metric_as_a_float_in_its_range(evaluation):
    assert set(evaluation.metrics) == METRICS
    assert all(type(value) is float for value in evaluation.metrics.values())
    counts = {"false_positives", "misses", "good_images", "defective_images", "masked_images", "latency_ms"}
    counts |= {"false_regions", "defect_regions", "found_regions"}
    assert all(0 <= evaluation.metrics[name] <= 1 for name in METRICS - counts)
    for name in ESTIMATED:
        low, middle, high = (evaluation.metrics[f"{name}{end}"] for end in ("_low", "", "_high"))
        assert low <= middle <= high, name
    assert evaluation.metrics["latency_ms"] > 0


def test_evaluate_metrics_agree_with_scikit_learn_on_its_own_scores_and_maps(evaluation):
    labels, scores = evaluation.scores["label"], evaluation.scores["score"]
    assert evaluation.metrics["image_auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    assert evaluation.metrics["image_prauc"] == pytest.approx(average_precision_score(labels, scores), abs=1e-9)
    pixels = evaluation.masks.ravel(), evaluation.maps.ravel()
    assert evaluation.metrics["pixel_auroc"] == pytest.approx(roc_auc_score(*pixels), abs=1e-9)
    assert evaluation.metrics["pixel_prauc"] == pytest.approx(average_precision_score(*pixels), abs=1e-6)
    assert evaluation.metrics["pixel_prevalence"] == pytest.approx(evaluation.masks.mean())


@pytest.fixture(scope="module")
def inside():
    """The lower half of a bundle's images."""
    inside = np.zeros((32, 32), bool)
    inside[16:] = True
    return inside


@pytest.mark.parametrize("masks_at", ["model", "native"])
def test_evaluate_measures_pixels_inside_of_the_region_of_interest_alone(bundle, inside, demo, category, masks_at):
    roi = Roi(torch.from_numpy(inside)[None])
    found = evaluate(
        dataclasses.replace(bundle, scorer=dataclasses.replace(bundle.scorer, roi=roi)), demo, category, None, masks_at
    )
    assert np.array_equal(found.roi, inside) and not found.masks[:, :16].any() and found.masks.any()
    if masks_at == "model":
        pixels = found.masks[:, 16:].ravel(), found.maps[:, 16:].ravel()
        assert found.metrics["pixel_auroc"] == pytest.approx(roc_auc_score(*pixels), abs=1e-9)
    whole = msad.data_io.test_split.TestSplit(demo, category)
    lost = sum(mask.any() and not mask[len(mask) // 2 :].any() for mask in whole.masks())
    assert any(remark.startswith("region of interest: 50% of each image") for remark in found.remarks)
    assert any(f"the defect of {lost} image(s) lies outside" in remark for remark in found.remarks) == (lost > 0)
    tops = (found.regions["y"] + found.regions["height"]) / whole.native_size(0)[0]
    assert len(tops) and (tops > 0.5).all()


def test_evaluate_counts_and_outcomes_follow_the_threshold(evaluation, bundle):
    table = evaluation.scores
    flagged = table["score"] > bundle.threshold
    assert (flagged == (table["verdict"] == "anomalous")).all()
    assert (
        evaluation.metrics["misses"] == ((table["label"] == 1) & ~flagged).sum() == (table["outcome"] == "miss").sum()
    )
    assert evaluation.metrics["false_positives"] == ((table["label"] == 0) & flagged).sum()
    assert evaluation.metrics["recall"] == pytest.approx(1 - evaluation.metrics["misses"] / table["label"].sum())


def test_evaluate_per_defect_type_covers_all_and_measures_each_against_good(evaluation, demo, category):
    types = {path.name for path in (demo / category / "test").iterdir()} - {"good"}
    assert set(evaluation.per_defect_type.index) == types
    name = sorted(types)[0]
    part = evaluation.scores.query("label == 0 or defect_type == @name")
    row = evaluation.per_defect_type.loc[name]
    assert row["image_auroc"] == pytest.approx(roc_auc_score(part["label"], part["score"]), abs=1e-9)
    assert row["image_prauc"] == pytest.approx(average_precision_score(part["label"], part["score"]), abs=1e-9)
    assert row["f1"] == pytest.approx(f1_score(part["label"], part["verdict"] == "anomalous"), abs=1e-9)
    assert row["image_auroc_low"] <= row["image_auroc"] <= row["image_auroc_high"]
    pixels = evaluation.masks[part.index].ravel(), evaluation.maps[part.index].ravel()
    assert row["pixel_auroc"] == pytest.approx(roc_auc_score(*pixels), abs=1e-9)
    assert tuple(evaluation.per_defect_type.columns) == PER_DEFECT_TYPE
    assert evaluation.per_defect_type["misses"].sum() == evaluation.metrics["misses"]


def test_evaluate_recall_at_fpr_is_at_the_rate_of_the_job(evaluation, bundle):
    labels, scores = evaluation.scores["label"], evaluation.scores["score"]
    assert evaluation.metrics["target_fpr"] == bundle.job.false_positive_rate
    false_rate, recall, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert evaluation.metrics["recall_at_fpr"] == recall[false_rate <= bundle.job.false_positive_rate].max()


def test_evaluate_opens_every_mask_once(bundle, demo, category, monkeypatch):
    opened = []
    real = msad.data_io.masks.read_mask
    counted = lambda path, *more: opened.append(path) or real(path, *more)  # noqa: E731
    monkeypatch.setattr("msad.data_io.masks.read_mask", counted)
    for masks_at in ("model", "native"):
        result = evaluate(bundle, demo, category, None, masks_at=masks_at)
        assert len(opened) == len(set(opened)) == result.metrics["defective_images"]
        opened.clear()


def test_evaluate_per_defect_type_at_native_size_is_measured_on_the_resized_maps(bundle, demo, category):
    native = evaluate(bundle, demo, category, None, masks_at="native")
    split = msad.data_io.test_split.TestSplit(demo, category)
    masks = list(split.masks())
    maps = [fit_map(torch.from_numpy(one[None]), mask.shape) for one, mask in zip(native.maps, masks, strict=True)]
    name = native.per_defect_type.index[-1]
    chosen = [index for index, kind in enumerate(split.defect_types) if kind in (name, "good")]
    labels, values = (np.concatenate([parts[index].ravel() for index in chosen]) for parts in (masks, maps))
    assert native.per_defect_type.loc[name, "pixel_auroc"] == pytest.approx(roc_auc_score(labels, values), abs=1e-9)


def test_evaluate_lists_regions_in_the_images_own_pixels(evaluation, bundle):
    table = evaluation.regions
    assert 0 < table["path"].nunique() < len(evaluation.scores)
    for path, rows in table.groupby("path"):
        found = bundle.predict(path).regions()
        assert rows["region"].tolist() == [*range(1, len(found) + 1)]
        for name in ("x", "y", "width", "height", "area"):
            assert rows[name].tolist() == [getattr(one, name) for one in found]
        assert rows["peak"].tolist() == pytest.approx([one.peak for one in found], rel=1e-4)
    without = set(evaluation.scores["path"]) - set(table["path"])
    assert not any(bundle.predict(path).regions() for path in without)


def test_evaluate_counts_regions_by_hand(evaluation, demo, category):
    split = msad.data_io.test_split.TestSplit(demo, category)
    found = defects = 0
    for path, mask in zip(split.paths, split.masks(), strict=True):
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        seen = set()
        for row in evaluation.regions.query("path == @path.__str__()").itertuples():
            at = fit_map(torch.from_numpy(evaluation.maps[split.paths.index(path)][None]), mask.shape)
            own, _ = ndimage.label(at > evaluation.pixel_threshold, np.ones((3, 3)))
            box = own[row.y : row.y + row.height, row.x : row.x + row.width]
            number = next(n for n in np.unique(box) if n and (box == n).sum() == row.area)
            seen |= set(labels[own == number]) - {0}
            assert row.on_defect == pytest.approx(mask[own == number].mean())
        found, defects = found + len(seen), defects + count
    figures = [evaluation.metrics[name] for name in ("found_regions", "defect_regions")]
    assert figures == [found, defects] and 0 < found <= defects
    good = evaluation.scores["label"] == 0
    false = evaluation.regions["path"].isin(evaluation.scores["path"][good]).sum()
    assert evaluation.metrics["false_regions"] == pytest.approx(false / good.sum())


def test_save_tables_can_be_read_back(evaluation, tmp_path):
    save_tables(evaluation, tmp_path, prefix="test_")
    scores = pd.read_csv(tmp_path / "test_scores.csv")
    assert scores["score"].tolist() == pytest.approx(evaluation.scores["score"].tolist())
    per_type = pd.read_csv(tmp_path / "test_per_defect_type.csv", index_col="defect_type")
    pd.testing.assert_frame_equal(per_type, evaluation.per_defect_type)
    regions = pd.read_csv(tmp_path / "test_regions.csv")
    pd.testing.assert_frame_equal(regions, evaluation.regions, check_dtype=False)


def test_evaluate_scores_are_those_that_predict_gives(evaluation, bundle):
    rows = evaluation.scores.iloc[[0, len(evaluation.scores) - 1]]
    for row in rows.itertuples():
        assert bundle.predict(row.path).score == pytest.approx(row.score, rel=1e-4)


def test_evaluate_native_masks_are_counted_at_their_own_size(bundle, demo, category):
    native = evaluate(bundle, demo, category, None, masks_at="native")
    masks = [np.asarray(Image.open(path)) > 127 for path in (demo / category / "ground_truth").rglob("*.png")]
    sizes = [np.prod(Image.open(path).size) for path in native.scores["path"]]
    assert native.metrics["pixel_prevalence"] == pytest.approx(sum(m.sum() for m in masks) / sum(sizes), abs=1e-12)


def test_evaluate_wrong_place_or_category_is_refused(bundle, demo, category):
    with pytest.raises(ConfigError, match="one of model, native"):
        evaluate(bundle, demo, category, None, masks_at="nowhere")
    with pytest.raises(DataError, match=category):
        evaluate(bundle, demo, category + "s", None)


def test_evaluate_on_real_images_after_saving_and_loading(bundle, industrial, tmp_path):
    loaded = Bundle.load(bundle.save(tmp_path / "bundle"), device="cpu")
    result = evaluate(loaded, industrial, "bottle", None)
    assert len(result.scores) == 83 and result.metrics["image_prevalence"] == pytest.approx(63 / 83)
    assert list(result.per_defect_type["images"]) == [20, 22, 21]
    assert result.maps.shape == (83, 32, 32) and np.isfinite(result.maps).all()


def test_test_split_is_imported_by_evaluation_alone():
    importers = set()
    for package in ("orchestrator", "models", "data_io", "search_spaces"):
        for path in (REPOSITORY / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in getattr(node, "names", [])] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom):
                    names = [f"{node.module}.{alias.name}" for alias in node.names]
                if any(name.startswith("msad.data_io.test_split") for name in names):
                    importers.add(path.relative_to(REPOSITORY).as_posix())
    assert importers == {"orchestrator/bundle/evaluation.py"}


def test_evaluate_measures_pixels_on_the_images_that_have_masks_and_says_how_many(bundle, demo, category, tmp_path):
    whole = evaluate(bundle, demo, category, None)
    shutil.copytree(demo / category, tmp_path / category)
    first, *others = sorted(path.name for path in (tmp_path / category / "ground_truth").iterdir())
    shutil.rmtree(tmp_path / category / "ground_truth" / first)
    some = evaluate(bundle, tmp_path, category, None)
    of_type = int((some.scores["defect_type"] == first).sum())
    defective = some.metrics["defective_images"]
    assert some.metrics["masked_images"] == defective - of_type
    assert some.remarks == [
        f"{of_type} of {defective:.0f} defective images have no mask: pixels are measured on the others"
    ]
    pd.testing.assert_frame_equal(some.per_defect_type.loc[others], whole.per_defect_type.loc[others])
    assert some.per_defect_type.loc[first, list(OF_PIXELS)].isna().all()
    measured = some.masked & (some.scores["defect_type"] != first)
    assert some.metrics["pixel_auroc"] == pytest.approx(
        roc_auc_score(some.masks[measured].ravel(), some.maps[measured].ravel()), abs=1e-9
    )
    assert "note: " in format_evaluation(some) and "nan" not in format_evaluation(some)


def test_evaluate_without_masks_has_no_figure_of_pixels_anywhere(bundle, demo, category, tmp_path):
    shutil.copytree(demo / category, tmp_path / category)
    shutil.rmtree(tmp_path / category / "ground_truth")
    none = evaluate(bundle, tmp_path, category, None)
    assert not [name for name in none.metrics if name.startswith(("pixel", "aupro", "masked"))]
    assert not {*none.per_defect_type} & {*OF_PIXELS} and len(none.per_defect_type)
    text = format_evaluation(none)
    assert "pixel_auroc" not in text and "of pixels" not in text and "note: no masks: pixels are not measured" in text
    description = {"category": category, "architecture": "a", "job": {"objective": "o"}, "provenance": {}}
    per_type = none.per_defect_type.to_dict(orient="index")
    description["provenance"]["test"] = {**none.metrics, "per_defect_type": per_type, "remarks": none.remarks}
    card = _results(description)
    assert "- No masks: pixels are not measured." in card and card.count("ixel") == 1
    save_evaluation(none, tmp_path / "pictures")


def test_evaluate_of_12_bit_files_is_that_of_the_same_images_of_16_bits(bundle, demo, category, tmp_path):
    results = {}
    for depth in (12, 16):
        root = tmp_path / str(depth)
        shutil.copytree(demo / category, root / category)
        for path in (root / category / "test").rglob("*.png"):
            grey = np.asarray(Image.open(path).convert("L")).astype(np.uint32)
            Image.fromarray((grey * ((1 << depth) - 1) // 255).astype(np.uint16)).save(path)
        model = dataclasses.replace(bundle, job=dataclasses.replace(bundle.job, bit_depth=depth))
        results[depth] = evaluate(model, root, category, None)
    assert np.array_equal(results[12].images, results[16].images) and not results[12].remarks
    assert results[12].metrics["image_auroc"] == results[16].metrics["image_auroc"]
    [remark] = evaluate(bundle, tmp_path / "12", category, None).remarks  # the model is one of 16 bits
    assert "the model reads them as of 16, so they are dark to it" in remark


def test_known_defect_among_the_test_images_is_refused(bundle, with_known, category, tmp_path):
    """The check before a search cannot see every test split, and a model may be measured on another dataset."""
    identity = identify(with_known, category, seed=0, image_size=32).to_dict()
    chosen = dataclasses.replace(bundle, provenance={"identity": identity})
    assert evaluate(chosen, with_known, category, None).metrics["defective_images"] > 0
    shutil.copytree(with_known / category, tmp_path / category)
    image = min(path for path in (tmp_path / category / "validation").rglob("*.png") if "_mask" not in path.name)
    shutil.copy(image, tmp_path / category / "test" / image.parent.name / "copy.png")
    with pytest.raises(DataError, match=r"copy.png: 1 of the test images are known defects .* take them out of"):
        evaluate(chosen, tmp_path, category, None)
