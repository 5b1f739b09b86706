"""An evaluation on the terminal."""

from __future__ import annotations

import dataclasses
import re

import pytest

from msad.bundle.evaluation import evaluate
from msad.terminal.evaluation_text import format_evaluation


@pytest.fixture(scope="module")
def evaluation(bundle, demo, category):
    return evaluate(bundle, demo, category, None)


def test_format_evaluation_shows_every_figure_with_its_interval(evaluation):
    text, metrics = format_evaluation(evaluation), evaluation.metrics
    for name in ("image_auroc", "image_prauc", "f1", "recall", "false_alarm_rate", "recall_at_fpr"):
        line = rf"^{name} +{metrics[name]:.4f}  {metrics[f'{name}_low']:.3f} to {metrics[f'{name}_high']:.3f} "
        assert re.search(line, text, re.MULTILINE), name
    for name in ("pixel_auroc", "pixel_prauc", "aupro_30", "aupro_05"):
        assert re.search(rf"^{name} +{metrics[name]:.4f} ", text, re.MULTILINE), name
    assert f"{metrics['misses']:.0f} of {metrics['defective_images']:.0f} missed" in text
    assert re.search(rf"^false_regions +{metrics['false_regions']:.4f} +in a good image", text, re.MULTILINE)
    found, defects = (f"{metrics[name]:.0f}" for name in ("found_regions", "defect_regions"))
    assert re.search(rf"^found_regions +{found} +of {defects} regions of the ground truth$", text, re.MULTILINE)


def test_format_evaluation_fits_a_terminal_of_100_columns_whatever_the_names(evaluation):
    table = evaluation.per_defect_type
    long = dataclasses.replace(evaluation, per_defect_type=table.rename(lambda name: f"{name} of a very long name"))
    text = format_evaluation(long)
    assert all(text.count(f"\n{name[:12]}") == 2 for name in table.index)
    assert max(map(len, text.splitlines())) <= 100


def test_format_evaluation_tells_what_the_threshold_promises_where_the_bundle_does(evaluation):
    assert "certify" not in format_evaluation(evaluation)
    promised = {"target": 0.01, "held_out": 31, "smallest": 1 / 32, "expected": 1 / 32, "at_most": 0.0921}
    text = format_evaluation(dataclasses.replace(evaluation, false_alarms=promised))
    assert "31 held-out good images, which certify no false-alarm rate below 3.1%." in text
    assert "at most 3.1% on average, and 9.2% for 95 of 100" in text and max(map(len, text.splitlines())) <= 100


def test_format_evaluation_tells_what_the_pixel_threshold_promises_where_the_bundle_does(evaluation):
    assert "pixel threshold rests" not in format_evaluation(evaluation)
    promised = {"target": 0.1, "held_out": 31, "regions": 2, "expected": 3 / 32}
    text = format_evaluation(dataclasses.replace(evaluation, false_regions=promised))
    assert "whose maps have 2 regions above it in all.\nAimed at were 0.1 per good image" in text
    assert "on average at most 9.4% of them show one" in text and max(map(len, text.splitlines())) <= 100


def test_format_evaluation_of_good_images_alone_has_no_table_and_no_nan(evaluation):
    nothing = dict.fromkeys(evaluation.metrics, float("nan"))
    counts = {"good_images": 3.0, "defective_images": 0.0, "misses": 0.0, "false_positives": 1.0, "latency_ms": 2.0}
    good = dataclasses.replace(
        evaluation,
        metrics=nothing | counts | {"target_fpr": 0.01},
        per_defect_type=evaluation.per_defect_type.iloc[:0],
    )
    text = format_evaluation(good)
    assert "nan" not in text and "Each defect type" not in text and "false alarms: 1 of 3" in text
