"""Exported files, run by onnxruntime and by torch alone, against the bundle they were made from."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from msad.bundle import export as export_module
from msad.bundle.bundles import Bundle
from msad.bundle.export import export
from msad.bundle.export_check import TOLERANCE, check
from msad.bundle.export_form import Form
from msad.bundle.images import to_tensor
from msad.bundle.onnx_graph import OPSET
from msad.bundle.runtimes import METADATA_FILE, OUTPUTS
from msad.data_io.photographs import load_textures
from msad.errors import ConfigError, ExportError
from msad.models.backbones import untrained
from msad.models.memory import EXACT
from msad.models.registry import architectures, build
from msad.models.roi import Roi
from msad.models.scorer import Scoring, fit_scorer
from msad.models.thresholds import threshold
from msad.terminal.cli import msad
from msad.training.job_config import JobConfig
from tests.bolts import SIDE as BOLT_SIZE
from tests.bolts import bolts

SIZE = 64
SMALL = {
    **{name: {"base_width": 4, "depth": 2} for name in architectures()},
    "feature_ensemble": {"width": 8, "bottleneck_channels": 4, "rows": EXACT + 1},
    "feature_memory": {"rows": 20, "neighbours": 3},
    "feature_pyramid": {"width": 8, "bottleneck_channels": 4},
}
# One of each choice is met by some architecture; every combination of them in tests/models/test_detector.py.
SCORING = {
    "baseline": {"reduction": "max", "calibration": "none", "smoothing": 0.0},
    "feature_ensemble": {"reduction": "top1", "fusion": "excesses", "blend": "excesses"},
    "feature_pyramid": {"reduction": "top1", "calibration": "position", "smoothing": 1.0},
    "multiscale": {"reduction": "mean", "calibration": "position", "smoothing": 0.0},
    "multiscale_segmenter": {"reduction": "top1", "calibration": "none", "smoothing": 0.5},
}


def make(name, **parameters):
    """A bundle with untrained weights but real statistics; images it calls good and anomalous lie on both sides."""
    torch.manual_seed(0)
    parameters = {**SMALL[name], **parameters}
    job = JobConfig(category="brick", architecture=name, image_size=SIZE, model=parameters)
    model = build(name, **parameters).eval()
    if not model.loss_terms:
        model.adapt([model.encode(to_tensor(load_textures(SIZE)[1::3]))])
    maps = model.anomaly_maps(to_tensor(load_textures(SIZE)[::3]))
    scorer = fit_scorer(Scoring(dict.fromkeys(maps, 1.0), **SCORING.get(name, {})), maps)
    good_maps, scores = (part.numpy() for part in scorer(maps))
    return Bundle(
        model, scorer, threshold(scores, 0.5), job, {"run_id": "0123abcd"}, float(np.quantile(good_maps, 0.9))
    )


@pytest.fixture(scope="module")
def batch():
    """Two photographs of a size that the model was not made for."""
    photographs = [Image.fromarray(image).resize((90, 70)) for image in load_textures(160)[[1, 30]]]
    return np.stack([np.asarray(photograph) for photograph in photographs])


def assert_agrees(found, bundle, batch):
    score, is_anomalous, anomaly_map, mask = (np.asarray(part) for part in found)
    expected = bundle.predict(batch)
    allowed = TOLERANCE * float(np.ptp([prediction.anomaly_map for prediction in expected]))
    assert score.dtype == np.float32 and score == pytest.approx([one.score for one in expected], abs=allowed)
    assert is_anomalous.dtype == bool and is_anomalous.tolist() == [one.is_anomalous for one in expected]
    assert anomaly_map.shape == batch.shape[:3]
    assert anomaly_map == pytest.approx(np.stack([one.anomaly_map for one in expected]), abs=allowed)
    assert mask.dtype == bool and np.array_equal(mask, anomaly_map > np.float32(bundle.pixel_threshold))


def test_vision_transformer_as_a_backbone_goes_with_bundle_and_file(batch, tmp_path, monkeypatch):
    pytest.importorskip("timm", reason="the extra timm is not installed")
    with untrained():
        bundle = make("feature_memory", backbone="timm:test_vit")
    bundle.save(tmp_path / "bundle")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    loaded = Bundle.load(tmp_path / "bundle", "cpu")
    for one, other in zip(loaded.predict(batch), bundle.predict(batch), strict=True):
        assert one.score == pytest.approx(other.score, rel=1e-4)
    card = (tmp_path / "bundle" / "MODEL_CARD.md").read_text()
    assert "apache-2.0, huggingface.co/timm/test_vit.r160_in1k" in card and f"timm {version('timm')}" in card
    export(loaded, tmp_path / "part.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "part.onnx")
    assert_agrees(session.run(OUTPUTS, {"image": batch}), bundle, batch)


# What the others are made of is in these.
QUICK = ("multiscale", "feature_memory", "feature_ensemble")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in architectures()]
)
def test_exported_files_answer_as_the_bundle_does(name, batch, tmp_path, monkeypatch):
    bundle = make(name)
    program = export_module._trace(bundle, Form())
    monkeypatch.setattr(export_module, "_trace", lambda *_: program)  # half of the time, for both formats
    files = {suffix: tmp_path / "new" / f"part{suffix}" for suffix in (".onnx", ".pt2")}
    for file in files.values():
        result = export(bundle, file)
        assert result.images == 7 and max(result.score, result.map) <= TOLERANCE * result.range
    session = onnxruntime.InferenceSession(files[".onnx"])
    loaded = torch.export.load(files[".pt2"]).module()
    for images in (batch, batch[:1], batch.repeat(2, axis=0), batch[:, :SIZE, :SIZE]):
        assert_agrees(session.run(OUTPUTS, {"image": images}), bundle, images)
        assert_agrees(loaded(torch.from_numpy(np.ascontiguousarray(images))), bundle, images)
    verdicts = session.run(["is_anomalous"], {"image": load_textures(SIZE)})[0]
    assert 0 < verdicts.mean() < 1

    [image] = session.get_inputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(uint8)", ["images", "height", "width", 3])
    text = {METADATA_FILE: ""}
    torch.export.load(files[".pt2"], extra_files=text)
    for known in (session.get_modelmeta().custom_metadata_map, json.loads(text[METADATA_FILE])):
        assert float(known["threshold"]) == bundle.threshold and known["run_id"] == "0123abcd"
        assert (known["category"], known["architecture"]) == ("brick", name)
        assert ("Apache-2.0" in known["pretrained_weights"]) == name.startswith("feature_")
    model = onnx.load(files[".onnx"])
    assert {(one.domain, one.version) for one in model.opset_import} == {("", OPSET)}
    here = str(Path(export_module.__file__).parent).encode()
    assert all(here not in file.read_bytes() for file in files.values())


def test_exported_files_straighten_parts_as_the_bundle_does(tmp_path):
    good = bolts(np.linspace(0, 345, 24))
    model = build("feature_memory", rows=100).eval()
    model.meet(good)
    model.adapt([model.encode(to_tensor(good))])
    maps = model.anomaly_maps(to_tensor(bolts([5, 95, 185, 275])))
    scorer = fit_scorer(Scoring(**model.fixed_scoring), maps)
    job = JobConfig(category="bolt", architecture="feature_memory", image_size=BOLT_SIZE, model={"rows": 100})
    bundle = Bundle(model, scorer, threshold(scorer(maps)[1].numpy(), 0.5), job, {})
    assert model.pose.cutout
    images = bolts([33, 123, 260])
    images[0, 60:66, 60:66] = 20
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    for suffix in (".onnx", ".pt2"):
        result = export(bundle, tmp_path / f"bolt{suffix}", [tmp_path])
        assert result.images == 3 and max(result.score, result.map) <= TOLERANCE * result.range
    session = onnxruntime.InferenceSession(tmp_path / "bolt.onnx")
    assert_agrees(session.run(OUTPUTS, {"image": images}), bundle, images)


def test_exported_files_keep_to_the_region_of_interest(batch, tmp_path):
    bundle = make("feature_pyramid")
    inside_1HW = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    inside_1HW[:, :, 24:] = True
    maps = bundle.model.anomaly_maps(to_tensor(load_textures(SIZE)[::3]))
    bundle = replace(bundle, scorer=fit_scorer(bundle.scorer.scoring, maps, Roi(inside_1HW)))
    export(bundle, tmp_path / "part.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "part.onnx")
    found = session.run(OUTPUTS, {"image": batch})
    assert_agrees(found, bundle, batch)
    assert np.ptp(found[2][0][:, :30]) < 0.01 < np.ptp(found[2][0])  # of 90 pixels across
    assert session.get_modelmeta().custom_metadata_map["region_of_interest"] == "0.625 of the image"


def test_exported_onnx_runs_where_torch_and_msad_are_missing(batch, tmp_path):
    export(make("baseline"), tmp_path / "part.onnx", [])
    np.save(tmp_path / "batch.npy", batch)
    code = """
import sys
sys.modules["torch"] = sys.modules["msad"] = None
import numpy, onnxruntime
session = onnxruntime.InferenceSession("part.onnx")
score, is_anomalous, anomaly_map, mask = session.run(None, {"image": numpy.load("batch.npy")})
print(score.shape, is_anomalous.dtype, anomaly_map.shape, mask.dtype)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(2,) bool (2, 70, 90) bool"


def test_graph_that_answers_otherwise_is_not_written(tmp_path, monkeypatch):
    bundle = make("baseline")
    traced = export_module._trace

    other = replace(bundle, scorer=replace(bundle.scorer, scoring=replace(bundle.scorer.scoring, reduction="mean")))
    monkeypatch.setattr(export_module, "_trace", lambda _, form: traced(other, form))
    with pytest.raises(ExportError, match=r"not written: it would differ .* of the range is allowed") as error:
        export(bundle, tmp_path / "part.pt2")
    assert "Try the other format (.onnx)" in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_value_that_is_not_finite_counts_as_a_difference(value):
    bundle = make("baseline")
    images = load_textures(SIZE)[:2]
    answers = bundle.predict(images)
    score, verdict, maps = (
        np.array([getattr(one, name) for one in answers]) for name in ("score", "is_anomalous", "anomaly_map")
    )

    def compare(*changed, **options):
        given = changed or (score, verdict, maps)
        run = lambda _: given if len(given) == 4 else (*given, given[2] > np.float32(bundle.pixel_threshold))  # noqa: E731
        return check(bundle, Path("part.onnx"), [(images, answers)], run, **options)

    assert compare().score == 0
    changed = maps.copy()
    changed[1, 3, 3] = value
    for exact in (True, False):
        with pytest.raises(ExportError, match="not written"):
            compare(score, verdict, changed, exact=exact)
    with pytest.raises(ExportError, match="not written"):
        compare(score, ~verdict, maps)
    assert compare(score, ~verdict, maps, exact=False).verdicts == 2
    with pytest.raises(ExportError, match=r"not written: in openvino it"):
        compare(score, verdict, maps, maps <= np.float32(bundle.pixel_threshold), runtime="openvino")


def test_architecture_that_is_no_graph_is_refused_by_name(tmp_path):
    bundle = make("baseline")
    whole = bundle.model.reconstruct
    bundle.model.reconstruct = lambda image_BCHW: whole(image_BCHW) if image_BCHW.mean() > 0.9 else image_BCHW / 2
    with pytest.raises(ExportError, match=r"part.pt2: 'baseline' cannot be exported in this format: .+"):
        export(bundle, tmp_path / "part.pt2")
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named_with_the_command_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match="needs onnxscript, not installed here: pip install onnx onnxscript onnxrunt"):
        export(make("baseline"), tmp_path / "part.onnx")


@pytest.mark.parametrize("name", ["part", "part.pt", "part.ONNX.zip"])
def test_file_of_another_format_is_refused(name, tmp_path):
    with pytest.raises(ConfigError, match=r"must end in \.onnx or \.pt2"):
        export(make("baseline"), tmp_path / name)


def test_command_exports_and_checks_on_the_images_given(tmp_path, demo, category):
    make("baseline").save(tmp_path / "bundle")
    words = ["export", str(tmp_path / "bundle"), "--to", str(tmp_path / "part.pt2"), "--batch", "1", "--size", "64x64"]
    words.append("--check-on")
    done = CliRunner().invoke(msad, [*words, str(demo / category / "train")], standalone_mode=False)
    assert done.exit_code == 0 and "on 8 images within" in done.stdout and (tmp_path / "part.pt2").is_file()
    with pytest.raises(ConfigError, match=r"no image \(.*\) in"):
        CliRunner().invoke(msad, [*words, str(tmp_path / "bundle")], standalone_mode=False, catch_exceptions=False)
    with pytest.raises(ConfigError, match=r"no such file or folder: .*missing"):
        CliRunner().invoke(msad, [*words, str(tmp_path / "missing")], standalone_mode=False, catch_exceptions=False)
