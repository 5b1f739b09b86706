"""Predictions over time: windows in the order of the files, a change found where it began, folders that are refused."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from msad.bundle.bundles import Bundle
from msad.bundle.drift_history import read_history
from msad.bundle.predict import predict_folder
from msad.data_io.image_statistics import STATISTICS, image_statistics
from msad.errors import ConfigError
from msad.terminal.cli import msad

BEGAN = datetime(2026, 3, 2, 6, 0, tzinfo=UTC).timestamp()


@pytest.fixture(scope="module")
def photographs(demo, category):
    """Sixty photographs of one product, each a little different."""
    rng = np.random.default_rng(0)
    paths = sorted((demo / category / "train" / "good").iterdir())
    images = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    return [np.clip(images[n % len(images)] + rng.normal(rng.normal(0, 2), 2), 0, 255) for n in range(60)]


@pytest.fixture(scope="module")
def measured(bundle, photographs):
    held_out = [image.astype(np.uint8) for image in photographs]
    statistics = [image_statistics(image) for image in held_out]
    values = {name: [one[name] for one in statistics] for name in STATISTICS}
    values["score"] = [one.score for one in bundle.predict(held_out)]
    parts = bundle.model, bundle.scorer, bundle.threshold, bundle.job
    return Bundle(*parts, bundle.provenance | {"held_out": values}, bundle.pixel_threshold)


@pytest.fixture(scope="module")
def days(measured, photographs, tmp_path_factory):
    """The folders of two days, of which the second is darker from noon on; file names are in another order."""
    rng, folders = np.random.default_rng(1), []
    for day in range(2):
        images, out = (tmp_path_factory.mktemp(name) for name in (f"images{day}", f"out{day}"))
        for number in range(60):
            dark = 0.8 if day and number >= 30 else 1.0
            image = np.clip(photographs[number] * dark + rng.normal(0, 1), 0, 255).astype(np.uint8)
            file = images / f"{(number * 37) % 60:02}.png"
            Image.fromarray(image).save(file)
            moment = BEGAN + 86400 * day + 600 * number
            os.utime(file, (moment, moment))
        predict_folder(measured, [images], out, heatmaps=False)
        folders.append(out)
    return folders


def test_change_is_found_in_the_windows_since_it_began(days):
    history = read_history(days[::-1], window=30)  # in whatever order they are named
    assert [one.images for one in history.windows] == [30] * 4
    assert [one.first.isoformat() for one in history.windows] == [
        f"2026-03-0{day}T{hour}:00:00+00:00" for day in (2, 3) for hour in ("06", "11")
    ]
    darker = [any(finding.words.startswith("darker by ") for finding in one.findings) for one in history.windows]
    assert darker == [False, False, False, True] and not history.windows[0].findings
    assert len(read_history(days, window=50).windows) == 2  # the last one has what is left over


def test_history_is_drawn_and_told_by_the_command(days, tmp_path):
    words = ["drift", *map(str, days), "--to", str(tmp_path / "drift.png"), "--window", "30"]
    done = CliRunner().invoke(msad, words, standalone_mode=False, catch_exceptions=False)
    lines = done.stdout.splitlines()
    assert done.exit_code == 0 and lines[0].endswith("120 images") and "as the held-out images" in lines[1]
    assert lines[4].startswith("2026-03-03 11:00     30 images") and "darker by 19 %" in lines[4]
    with Image.open(tmp_path / "drift.png") as picture:
        assert picture.width > 600 and picture.height > 800
        assert np.ptp(np.asarray(picture.convert("L"))) > 100
    done = CliRunner().invoke(msad, [*words, "--json", "-"], standalone_mode=False, catch_exceptions=False)
    told = json.loads(done.stdout)
    assert told["rate"] == 0.01 and "darker by 19 %" in [one["words"] for one in told["windows"][3]["findings"]]
    usual = CliRunner().invoke(msad, [words[0], words[1], *words[3:]], standalone_mode=False, catch_exceptions=False)
    assert "nothing has changed that is certain" in usual.stdout


def test_folders_that_cannot_be_compared_are_refused(bundle, measured, days, demo, category, tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere: no predictions with statistics"):
        read_history([tmp_path / "nowhere"])
    predict_folder(bundle, [demo / category / "test"], tmp_path / "old", heatmaps=False)
    with pytest.raises(ConfigError, match="made before its held-out images were measured"):
        read_history([tmp_path / "old"])
    predict_folder(measured, [demo / category / "test"], tmp_path / "other", heatmaps=False, threshold=9.0)
    with pytest.raises(ConfigError, match="predictions of another threshold than"):
        read_history([days[0], tmp_path / "other"])
    few = sorted((demo / category / "test" / "good").iterdir())[:3]
    predict_folder(measured, few, tmp_path / "few", heatmaps=False)
    with pytest.raises(ConfigError, match="3 image\\(s\\) in all; at least 10"):
        read_history([tmp_path / "few"])
    with pytest.raises(ConfigError, match="a window of 5 images"):
        read_history(days, window=5)
    with pytest.raises(ConfigError, match="false-alarm rate is 0"):
        read_history(days, rate=0)
    stopped = json.loads((tmp_path / "few" / "prediction.json").read_text())
    del stopped["held_out"]
    (tmp_path / "few" / "prediction.json").write_text(json.dumps(stopped))
    with pytest.raises(ConfigError, match="stopped before its end"):
        read_history([tmp_path / "few"])
