"""The Python API as a notebook uses it: a real sweep, and what Jupyter would show."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from msad import Bundle, Sweep, leaderboard
from msad.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]
PICTURE = re.compile(r'<img src="data:image/png;base64,([^"]+)">')


def size_of(png: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(png)).size


@pytest.fixture(scope="module")
def result(demo, category, tmp_path_factory):
    """A finished sweep of one study of one trial, run twice: the second time it is only read."""
    folder = tmp_path_factory.mktemp("notebook")
    sweep = Sweep(
        dataset=demo,
        categories=category,
        architectures="baseline",
        trials=1,
        epochs=1,
        image_size=32,
        parameters={"model": {"base_width": 4, "depth": 2}},
        name="notebook",
        storage=folder / "sweeps",
        tracking_uri=f"sqlite:///{folder / 'mlflow.db'}",
    )
    first, again = sweep.run(), sweep.run()
    pd.testing.assert_frame_equal(first.leaderboard, again.leaderboard)
    return sweep, again


def test_import_of_the_package_loads_nothing_until_a_name_is_used():
    code = (
        "import sys, msad; assert {'Sweep', 'leaderboard', 'Bundle'} <= set(dir(msad))\n"
        "print(*({'torch', 'ray', 'mlflow', 'optuna', 'pandas', 'click'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_unknown_name_of_the_package_is_an_attribute_error():
    import msad

    with pytest.raises(AttributeError, match="Sweeep"):
        msad.Sweeep  # noqa: B018


def test_misspelt_setting_is_refused_with_the_nearest_name(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown setting 'trails'; did you mean 'trials'\?"):
        Sweep(dataset=tmp_path, trails=3)


def test_settings_are_laid_over_a_file():
    sweep = Sweep(REPOSITORY / "docs" / "examples" / "laptop.yaml", trials=2, resources={"cpus": 1})
    assert (sweep.config.name, sweep.config.trials) == ("laptop", 2)
    assert (sweep.config.resources.cpus, sweep.config.resources.gpus) == (1, 0)
    assert repr(sweep).startswith("Sweep(") and "trials=2" in repr(sweep)


def test_result_shows_as_a_table_and_a_picture(result, category):
    shown = result[1]._repr_html_()
    words = PICTURE.sub("", shown)
    assert "<table" in words and "baseline ★" in words and "NaN" not in words
    [picture] = PICTURE.findall(shown)
    width, height = size_of(base64.b64decode(picture))
    assert 300 < width <= 720 and height > 300
    assert repr(result[1]).startswith(f"<sweep notebook, best by validation score: {category}: baseline 0.")


def test_leaderboard_of_a_sweep_its_result_and_its_name_is_the_same(result):
    sweep, outcome = result
    frame = leaderboard(sweep)
    assert frame["architecture"].tolist() == ["baseline"]
    pd.testing.assert_frame_equal(frame, leaderboard(outcome))
    pd.testing.assert_frame_equal(frame, leaderboard("notebook", sweep.config.tracking_uri))


def test_best_is_the_bundle_of_the_run_that_the_leaderboard_names(result, category):
    outcome = result[1]
    bundle = outcome.best(category)
    assert isinstance(bundle, Bundle) and bundle.provenance["run_id"] == outcome.leaderboard["run_id"].item()
    assert outcome.best(architecture="baseline").threshold == bundle.threshold
    assert repr(bundle).startswith(f"<bundle of {category}: baseline at 32 pixels, threshold ")
    assert {"gallery", "roc_pr", "scores"} <= set(outcome.pictures())
    with pytest.raises(KeyError, match="bolt: one study was to be named; there are"):
        outcome.best("bolt")


def test_prediction_shows_the_image_with_its_map_and_the_verdict(bundle, demo, category):
    path = next((demo / category / "test").rglob("*.png"))
    image = np.asarray(Image.open(path).convert("RGB"))
    for source in (path, image, Image.open(path)):
        prediction = bundle.predict(source)
        assert size_of(prediction._repr_png_()) == (64, 64)
        shown = prediction._repr_html_()
        assert ("anomalous" if prediction.is_anomalous else "good") in shown and PICTURE.search(shown)
        assert prediction.overlay().shape == image.shape
    large = bundle.predict(Image.fromarray(image).resize((2000, 1000)))
    assert size_of(large._repr_png_()) == (640, 320)
