"""Bundles: what is saved comes back bit for bit, and what is damaged is refused by name."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from msad.bundle.bundle_files import CARD_FILE, DESCRIPTION_FILE, FORMAT, MODEL_FILE, SCORER_FILE, amend, verify
from msad.bundle.bundles import Bundle
from msad.bundle.contents import _LARGEST_NUMBER
from msad.bundle.images import to_tensor
from msad.bundle.map_scale import anchor
from msad.data_io.decode import resize
from msad.errors import BundleError, ResourceError
from msad.models import registry
from msad.models.backbones import untrained
from msad.models.feature_memory import MOST_ROWS
from msad.models.roi import Roi
from msad.models.scoring import Scoring, fit_scorer
from msad.training.job_config import JobConfig

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def photographs(demo, category):
    return sorted((demo / category / "test").rglob("*.png"))


@pytest.fixture
def saved(bundle, tmp_path):
    return bundle.save(tmp_path / "bundle")


def change(directory, **values):
    path = directory / DESCRIPTION_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_load_gives_back_the_same_scores_and_description(bundle, saved, photographs):
    loaded = Bundle.load(saved, device="cpu")
    assert loaded.job == bundle.job and loaded.threshold == bundle.threshold
    assert loaded.pixel_threshold == bundle.pixel_threshold != anchor(bundle.threshold)
    assert loaded.scorer.scoring == bundle.scorer.scoring
    image_BCHW = to_tensor(np.stack([resize(np.asarray(Image.open(p).convert("RGB")), 32) for p in photographs[:3]]))
    for before, after in zip(bundle.score_batch(image_BCHW), loaded.score_batch(image_BCHW), strict=True):
        assert torch.equal(before, after)


def test_bundle_is_the_network_that_it_was_whatever_the_defaults_are_later(saved, monkeypatch):
    of_the_time = inspect.signature(registry.architecture("multiscale")).parameters["skip_dropout"].default
    description = json.loads((saved / DESCRIPTION_FILE).read_text())
    assert (
        description["parameters"]["skip_dropout"] == of_the_time and "skip_dropout" not in description["job"]["model"]
    )
    now = registry.architecture("multiscale")

    class Later(now):
        def __init__(self, depth=3, base_width=99, skip="concat", **rest):
            super().__init__(depth=depth, base_width=base_width, skip=skip, **rest)

    monkeypatch.setitem(registry._OWN, "multiscale", Later)
    assert Bundle.load(saved, "cpu").model.state_dict().keys() == now(base_width=8, depth=2).state_dict().keys()


def memory_bundle(directory, rows, **scoring):
    with untrained():
        model = registry.build("feature_memory", rows=rows).eval()
    maps = model.anomaly_maps(torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    job = JobConfig(category="brick", architecture="feature_memory", image_size=64, model={"rows": rows})
    scorer = fit_scorer(Scoring(**{"weights": {"memory": 1.0}, **scoring}), maps)
    return Bundle(model, scorer, 1.0, job).save(directory)


def test_bundle_from_before_that_kept_no_defaults_has_the_memory_of_its_time(tmp_path):
    directory = memory_bundle(tmp_path / "old", 4000)
    description = json.loads((directory / DESCRIPTION_FILE).read_text())
    del description["parameters"], description["job"]["model"]["rows"]
    (directory / DESCRIPTION_FILE).write_text(json.dumps(description))
    assert Bundle.load(directory, "cpu").model.memory.bank_RC.shape == (4000, 472)


def test_bundle_of_more_places_than_any_image_has_pixels_a_side_is_loaded(tmp_path):
    assert len(Bundle.load(memory_bundle(tmp_path / "large", 33_000), "cpu").model.memory.bank_RC) == 33_000
    assert MOST_ROWS < _LARGEST_NUMBER


def test_description_says_whether_the_scoring_was_chosen(tmp_path):
    with untrained():
        fixed = dict(registry.build("feature_memory", rows=8).fixed_scoring)
    fixed["smoothing"] *= 64 / 256
    for name, scoring, chosen in (("fixed", fixed, False), ("other", fixed | {"reduction": "max"}, True)):
        description = json.loads((memory_bundle(tmp_path / name, 8, **scoring) / DESCRIPTION_FILE).read_text())
        assert description["scoring_chosen"] is chosen
        card = (tmp_path / name / CARD_FILE).read_text()
        assert ("chosen on the validation images" in card) is chosen
        assert ("the same for every model of this architecture" in card) is not chosen


def test_save_writes_strict_json_with_checksums_versions_and_no_pickle(bundle, saved):
    assert {path.name for path in saved.iterdir()} == {DESCRIPTION_FILE, MODEL_FILE, SCORER_FILE, CARD_FILE}

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    description = json.loads((saved / DESCRIPTION_FILE).read_text(), parse_constant=refuse)
    assert description["format"] == FORMAT and description["category"] == bundle.job.category
    assert set(description["sha256"]) == {MODEL_FILE, SCORER_FILE, CARD_FILE}
    assert description["provenance"]["run_id"] == "0123abcd"
    assert description["provenance"]["validation"] == {"score": 0.75, "pixel_ap": None}
    assert description["provenance"]["versions"]["torch"] == torch.__version__
    for path in saved.glob("*.safetensors"):
        assert path.read_bytes()[8:9] == b"{"


def test_bundle_without_a_pixel_threshold_gets_the_middle_of_the_colour_scale(bundle, saved):
    description = json.loads((saved / DESCRIPTION_FILE).read_text())
    for removed in ({"pixel_threshold": None}, {}):
        without = {name: value for name, value in description.items() if name != "pixel_threshold"}
        (saved / DESCRIPTION_FILE).write_text(json.dumps(without | removed))
        loaded = Bundle.load(saved)
        assert loaded.pixel_threshold == anchor(bundle.threshold) and "false_regions" not in loaded.provenance


@pytest.mark.parametrize(("side", "fits"), [(32, True), (16, False)])
def test_bundle_keeps_a_region_of_interest_of_its_images_size_alone(bundle, tmp_path, side, fits):
    roi = Roi(torch.arange(side * side).view(1, side, side) % 2 == 0)
    directory = Bundle(bundle.model, dataclasses.replace(bundle.scorer, roi=roi), bundle.threshold, bundle.job).save(
        tmp_path / "bundle"
    )
    if fits:
        assert np.array_equal(Bundle.load(directory, "cpu").roi, roi.inside_1HW[0].numpy())
    else:
        with pytest.raises(BundleError, match="its region of interest is not of 32 pixels"):
            Bundle.load(directory, "cpu")


def test_bundle_whose_pixel_threshold_is_no_number_is_refused(saved):
    for wrong in ("high", [1.0], 1e999):
        change(saved, pixel_threshold=wrong)
        with pytest.raises(BundleError, match=r"not a readable bundle|pixel threshold is inf"):
            Bundle.load(saved)


def test_save_replaces_a_bundle_and_leaves_nothing_beside_it(make_bundle, saved):
    other = make_bundle(reduction="mean")
    other.save(saved)
    assert Bundle.load(saved).scorer.scoring.reduction == "mean"
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_save_into_a_foreign_folder_is_refused_and_keeps_it(bundle, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="holds something that is no bundle"):
        bundle.save(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_save_that_fails_midway_leaves_no_bundle(bundle, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("msad.bundle.bundle_files.os.fsync", full)
    with pytest.raises(ResourceError, match="No space left on device"):
        bundle.save(tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [MODEL_FILE, SCORER_FILE])
def test_load_damaged_tensor_file_is_named(saved, name):
    content = bytearray((saved / name).read_bytes())
    content[-1] ^= 1
    (saved / name).write_bytes(content)
    with pytest.raises(BundleError, match=rf"{name}: damaged"):
        Bundle.load(saved)


@pytest.mark.parametrize("name", [MODEL_FILE, SCORER_FILE, DESCRIPTION_FILE])
def test_load_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(BundleError, match=name):
        Bundle.load(saved)


def test_amended_bundle_tells_more_in_its_card_and_stays_whole(saved):
    amend(saved, {"test": {"image_auroc": 0.875, "aupro_30": float("nan")}})
    assert "| Image AUROC | 0.875 |" in (saved / CARD_FILE).read_text()
    assert "| AU-PRO up to 30 % false positives | not defined |" in (saved / CARD_FILE).read_text()
    verify(saved)
    provenance = Bundle.load(saved).provenance
    assert provenance["test"] == {"image_auroc": 0.875, "aupro_30": None} and provenance["run_id"] == "0123abcd"
    before = [(path.name, path.stat().st_mtime_ns) for path in sorted(saved.iterdir())]
    amend(saved, {"run_id": "0123abcd", "test": {"image_auroc": 0.875, "aupro_30": float("nan")}})
    assert [(path.name, path.stat().st_mtime_ns) for path in sorted(saved.iterdir())] == before


def test_verify_card_that_was_edited_or_is_missing_is_named(saved):
    (saved / CARD_FILE).write_text("It finds everything.")
    with pytest.raises(BundleError, match=r"MODEL_CARD.md: damaged"):
        verify(saved)
    (saved / CARD_FILE).unlink()
    with pytest.raises(BundleError, match=r"MODEL_CARD.md: .*incomplete"):
        verify(saved)


def test_load_newer_format_says_to_upgrade(saved):
    change(saved, format=FORMAT + 1)
    with pytest.raises(BundleError, match=r"newer than this program reads.*upgrade msad"):
        Bundle.load(saved)


@pytest.mark.parametrize(
    "values",
    [
        {"job": {"category": "x", "architecture": "multiscale", "no_such": 1}},
        {"job": {"category": "x", "architecture": "baseline"}},
        {"scoring": {"weights": {}}},
        {"threshold": None},
        {"sha256": {}},
    ],
)
def test_load_description_that_does_not_fit_is_a_bundle_error(saved, values):
    change(saved, **values)
    with pytest.raises(BundleError, match=str(saved)):
        Bundle.load(saved)


def test_load_truncated_description_is_a_bundle_error(saved):
    path = saved / DESCRIPTION_FILE
    path.write_text(path.read_text()[:50])
    with pytest.raises(BundleError, match="damaged"):
        Bundle.load(saved)


def test_load_of_a_users_architecture_imports_only_what_is_allowed(own, bundle, tmp_path, monkeypatch):
    name = "my_detector:MyDetector"
    model = registry.use(name)(width=8)
    image_BCHW = torch.rand(4, 3, 32, 32)
    scorer = fit_scorer(Scoring({"difference": 1.0}), model.eval().anomaly_maps(image_BCHW))
    job = JobConfig(category="gear", architecture=name, image_size=32, model={"width": 8})
    saved = Bundle(model, scorer, 1.0, job).save(tmp_path / "bundle")
    score_B = scorer(model.anomaly_maps(image_BCHW))[1]
    torch.testing.assert_close(Bundle.load(saved).score_batch(image_BCHW)[1], score_B)  # in another memory format
    monkeypatch.setattr(registry, "_OWN", {})
    with pytest.raises(BundleError, match=f"{name}.*set MSAD_ARCHITECTURES={name}"):
        Bundle.load(saved)
    monkeypatch.setenv("MSAD_ARCHITECTURES", name)
    assert Bundle.load(saved).job == job


def test_load_of_an_architecture_whose_package_is_missing_names_the_package(saved):
    path = saved / DESCRIPTION_FILE
    values = json.loads(path.read_text())
    values["job"]["architecture"] = "their_detector"
    values["provenance"]["versions"]["their-detectors"] = "2.0"
    path.write_text(json.dumps(values))
    with pytest.raises(BundleError, match=r"unknown architecture 'their_detector'.*made with their-detectors 2.0"):
        Bundle.load(saved)
