"""Exported files of every kind: thresholds as inputs, fixed sizes, fewer bits, another runtime, measured and timed."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner

from msad.bundle.bench import STAGES, bench
from msad.bundle.bundles import Bundle
from msad.bundle.evaluation import evaluate
from msad.bundle.export import export
from msad.bundle.export_form import Form
from msad.bundle.exported_model import ExportedModel
from msad.bundle.images import to_tensor
from msad.bundle.runtimes import OUTPUTS
from msad.data_io.cache import load_images
from msad.data_io.decode import resize
from msad.data_io.splits import split_good_images
from msad.errors import BundleError, ConfigError
from msad.models.registry import build
from msad.models.roi import Roi
from msad.models.scorer import Scoring, fit_scorer
from msad.terminal.cli import msad
from msad.training.job_config import JobConfig

SIZE = 64
HAS_OPENVINO = importlib.util.find_spec("openvino") is not None


def make(demo, category, architecture, **parameters):
    """An untrained bundle with real statistics, whose two thresholds are equal."""
    torch.manual_seed(0)
    job = JobConfig(category=category, architecture=architecture, image_size=SIZE, model=parameters)
    model = build(architecture, **parameters).eval()
    split = split_good_images(demo, category, seed=0)
    if not model.loss_terms:
        model.adapt([model.encode(to_tensor(load_images(split.train_paths, SIZE)))])
    maps = model.anomaly_maps(to_tensor(load_images(split.validation_paths, SIZE)))
    scoring = Scoring(**(model.fixed_scoring or {"weights": {"l1": 1.0}, "smoothing": 1.0, "reduction": "top1"}))
    roi = torch.ones(1, SIZE, SIZE, dtype=torch.bool)
    roi[:, :, :5] = False
    scorer = fit_scorer(scoring, maps, Roi(roi) if model.loss_terms else None)
    cut = float(scorer(maps)[1].median())
    promised = {"target": 0.1, "held_out": 10, "regions": 0, "expected": 0.1}
    return Bundle(model, scorer, cut, job, {"false_regions": promised, "identity": {"known": ["0123  one.png"]}}, cut)


@pytest.fixture(scope="module")
def network(demo, category):
    return make(demo, category, "baseline", base_width=4, depth=2)


@pytest.fixture(scope="module")
def files(network, tmp_path_factory):
    """Files that take anything, four images of the model's size, and one of another size; and how they were checked."""
    folder, also_in = tmp_path_factory.mktemp("files"), ("openvino",) if HAS_OPENVINO else ()
    forms = {"any": Form(also_in=also_in), "own": Form(batch=4, size=SIZE)}
    forms["other"] = Form(batch=1, size="80x96", also_in=also_in)
    return {name: export(network, folder / f"{name}.onnx", form=form) for name, form in forms.items()}


@pytest.fixture(scope="module")
def photographs(demo, category):
    return load_images(sorted((demo / category / "test").rglob("*.png")), 90)


def opened(file):
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


def test_thresholds_are_two_inputs_that_need_not_be_given(files, network, photographs):
    session, batch = opened(files["any"].path), photographs[::4]
    assert [one.name for one in session.get_inputs()] == ["image"]
    assert {one.name for one in session.get_overridable_initializers()} == {"threshold", "pixel_threshold"}
    score, verdict, maps, mask = session.run(OUTPUTS, {"image": batch})
    assert np.array_equal(verdict, score > np.float32(network.threshold)) and 0 < mask.mean() < 1
    middle, high = (np.array(value, np.float32) for value in (np.median(score), np.quantile(maps, 0.99)))
    for given in ({"threshold": middle}, {"pixel_threshold": high}):
        others = session.run(OUTPUTS, {"image": batch, **given})
        assert np.array_equal(others[0], score) and np.array_equal(others[2], maps)
        assert np.array_equal(others[1], score > given.get("threshold", np.float32(network.threshold)))
        assert np.array_equal(others[3], maps > given.get("pixel_threshold", np.float32(network.pixel_threshold)))
        assert not (np.array_equal(others[1], verdict) and np.array_equal(others[3], mask))


def test_metadata_say_what_the_file_is(files, network):
    known = opened(files["any"].path).get_modelmeta().custom_metadata_map
    assert known["category"] == network.job.category and known["digest"] == network.fingerprint()
    assert float(known["threshold"]) == network.threshold
    assert float(known["pixel_threshold"]) == network.pixel_threshold
    assert (known["batch"], known["photograph_size"], known["precision"]) == ("any", "any", "float32")
    assert known["licence"].startswith("MIT") and known["pretrained_weights"] == "none"
    assert JobConfig.from_dict(json.loads(known["job"])) == network.job
    known = opened(files["other"].path).get_modelmeta().custom_metadata_map
    assert (known["batch"], known["photograph_size"]) == ("1", "80x96")


@pytest.mark.parametrize(("name", "sides"), [("own", (4, SIZE, SIZE)), ("other", (1, 80, 96))])
def test_file_of_fixed_sizes_answers_as_the_bundle_does_without_float64(files, network, photographs, name, sides):
    result = files[name]
    assert max(result.score, result.map) <= 0.001 * result.range
    graph = onnx.load(result.path).graph
    assert [one.dim_value for one in graph.input[0].type.tensor_type.shape.dim] == [*sides, 3]
    doubles = [one.name for one in graph.initializer if one.data_type == onnx.TensorProto.DOUBLE]
    assert not doubles and not {"Range", "ScatterND", "Shape"} & {node.op_type for node in graph.node}
    batch = np.stack([resize(image, sides[1:]) for image in photographs[: sides[0]]])
    score, *_ = opened(result.path).run(OUTPUTS, {"image": batch})
    assert score == pytest.approx([one.score for one in network.predict(batch)], rel=1e-3)


def test_fixed_batch_alone_leaves_the_size_open(network, photographs, tmp_path):
    export(network, tmp_path / "two.pt2", form=Form(batch=2))
    model = ExportedModel(tmp_path / "two.pt2")
    assert (model.batch, model.photograph, model.takes_its_own_size) == (2, None, True)
    maps, scores = model.score_images(photographs[:3, :48])  # the last one is alone
    expected = network.predict(photographs[:3, :48])
    assert maps.shape == (3, 48, 90) and scores == pytest.approx([one.score for one in expected], rel=1e-3)


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_fewer_bits_cost_what_is_told_and_leave_the_ranking(demo, category, tmp_path, precision):
    memory = make(demo, category, "feature_memory", rows=200)
    form = Form(precision=precision, calibrate_on=[demo] if precision == "int8" else [])
    file = tmp_path / "part.onnx"
    result = export(memory, file, [demo / category / "test"], form)
    share = 0.01 if precision == "float16" else 0.4  # of a tiny memory at 64 pixels
    assert 0 < result.map <= share * result.range and 0 < result.score <= share * result.range
    weights = sum(part.nbytes for part in memory.model.state_dict().values())
    assert file.stat().st_size < 0.75 * weights
    assert ExportedModel(file).metadata["precision"] == precision
    one, other = (evaluate(model, demo, category, None) for model in (memory, ExportedModel(file)))
    assert np.corrcoef(one.scores["score"], other.scores["score"])[0, 1] > 0.95
    assert abs(one.metrics["image_auroc"] - other.metrics["image_auroc"]) < 0.1
    kinds = {tensor.data_type for tensor in onnx.load(file).graph.initializer if "backbone" in tensor.name}
    assert (onnx.TensorProto.FLOAT16 if precision == "float16" else onnx.TensorProto.UINT8) in kinds


@pytest.mark.skipif(not HAS_OPENVINO, reason="the extra openvino is not installed")
@pytest.mark.parametrize("name", ["any", "other"])
def test_file_is_checked_in_openvino_too(files, name):
    [(runtime, other)] = files[name].also_in.items()
    assert runtime == "openvino" and other.images == files[name].images > 0
    assert 0 < max(other.score, other.map) <= 0.001 * other.range


def test_exported_files_are_measured_as_their_bundle_is(network, files, demo, category):
    of_bundle = evaluate(network, demo, category, None)
    for name in ("any", "own"):
        of_file = evaluate(ExportedModel(files[name].path), demo, category, None)
        for metric, value in of_bundle.metrics.items():
            if metric != "latency_ms":
                assert of_file.metrics[metric] == pytest.approx(value, abs=0.02, nan_ok=True), metric
        assert np.array_equal(of_file.roi, of_bundle.roi) and not of_file.roi.all()
        assert of_file.false_regions == network.provenance["false_regions"]
        assert of_file.scores["score"].tolist() == pytest.approx(of_bundle.scores["score"].tolist(), rel=1e-3)
        assert of_file.threshold == network.threshold and of_file.metrics["latency_ms"] > 0
    assert ExportedModel(files["any"].path).provenance["identity"] == network.provenance["identity"]
    with pytest.raises(ConfigError, match=r"takes photographs of 80x96 alone.*the model's size, 64"):
        evaluate(ExportedModel(files["other"].path), demo, category, None)


def test_models_and_files_are_timed_with_and_without_resizing_and_reading(network, files, demo, category):
    folder = demo / category / "test"
    for model in (network, ExportedModel(files["any"].path, threads=1)):
        result = bench(model, [folder], batches=(1, 3), seconds=0)
        assert [(one.stage, one.batch) for one in result.timings] == [(s, b) for b in (1, 3) for s in STAGES]
        assert all(0 < one.median_ms <= one.slow_ms for one in result.timings)
        assert all(one.per_second == pytest.approx(1000 * one.batch / one.median_ms) for one in result.timings)
        assert result.photograph == (64, 64)
    fixed = bench(ExportedModel(files["other"].path), seconds=0)
    assert [(one.stage, one.batch) for one in fixed.timings] == [(stage, 1) for stage in STAGES[1:]]
    assert fixed.photograph == (80, 96)
    with pytest.raises(ConfigError, match=r"none of the .* images has 80x96 pixels"):
        bench(ExportedModel(files["other"].path), [folder], seconds=0)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"precision": "int8"}, "needs good training images for its scales: --calibrate-on"),
        ({"calibrate_on": ["."]}, "int8 alone"),
        ({"precision": "int4", "calibrate_on": ["."]}, "must be one of float32, float16, int8"),
        ({"batch": 0}, "at least 1"),
        ({"size": "1024by1024"}, "no size in pixels"),
        ({"also_in": ["tensorrt"]}, "no runtime 'tensorrt'"),
    ],
)
def test_form_that_makes_no_sense_is_refused(form, words):
    with pytest.raises((ConfigError, ValueError), match=words):
        Form(**form)


def test_export_that_cannot_be_checked_or_calibrated_is_refused_before_any_work(network, demo, category, tmp_path):
    with pytest.raises(ConfigError, match=r"has 48x48 pixels .*, the size that the file is to take; .* has 64x64"):
        export(network, tmp_path / "part.onnx", [demo / category / "test"], Form(size=48))
    [few] = sorted((demo / category / "train" / "good").iterdir())[:1]
    with pytest.raises(ConfigError, match="1 good images for the scales of int8; at least 8"):
        export(network, tmp_path / "part.onnx", form=Form(precision="int8", calibrate_on=[few]))
    for form in (Form(precision="float16"), Form(also_in=("openvino",))):
        with pytest.raises(ConfigError, match=r"are for ONNX files: name it part\.onnx"):
            export(network, tmp_path / "part.pt2", form=form)
    assert not list(tmp_path.iterdir())


def test_file_that_msad_has_not_exported_is_refused(files, tmp_path):
    plain = files["any"].path
    with pytest.raises(ConfigError, match="No such file"):
        ExportedModel(tmp_path / "none.onnx")
    (tmp_path / "damaged.onnx").write_bytes(plain.read_bytes()[:1000])
    with pytest.raises(BundleError, match="no exported file, or a damaged one"):
        ExportedModel(tmp_path / "damaged.onnx")
    other = onnx.load(plain)
    del other.metadata_props[:]
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(BundleError, match="no file that this msad has exported"):
        ExportedModel(tmp_path / "other.onnx")
    with pytest.raises(ConfigError, match="device 'tpu' cannot be used"):
        ExportedModel(plain, "tpu")


def test_commands_measure_and_time_a_file(network, files, demo, category, tmp_path):
    def run(*words):
        return CliRunner().invoke(msad, [*map(str, words)], standalone_mode=False, catch_exceptions=False)

    file = files["own"].path
    assert "image_auroc" in run("evaluate", file, demo).stdout
    done = run("bench", file, demo / category / "test", "--seconds", 0)
    assert all(stage in done.stdout for stage in STAGES) and "batch of 4" in done.stdout
    network.save(tmp_path / "bundle")
    done = run("bench", tmp_path / "bundle", "--seconds", 0, "--batch", 2, "--threads", 1, "--json", "-")
    timed = json.loads(done.stdout)
    assert [one["batch"] for one in timed["timings"]] == [2, 2, 2] and timed["photograph"] == [400, 600]
