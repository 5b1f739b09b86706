"""One real, tiny job as a worker runs it: what it leaves in its folder, how it fails, how it goes on."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from msad.bundle.bundles import Bundle
from msad.cluster.workers import job_worker
from msad.cluster.workers.job_worker import load_checkpoint, load_training_data, run
from msad.cluster.workers.task import Task
from msad.data_io.image_statistics import STATISTICS
from msad.data_io.known_defects import KnownDefectFiles
from msad.errors import OutOfMemory, TrainingError
from msad.models.defects import known_share
from msad.models.kernels import native
from msad.training.identity import Identity, identify
from msad.training.job_config import JobConfig
from msad.training.worker_group import WorkerGroup
from msad.workspace import JobDirectory


@pytest.fixture(scope="module")
def make_task(demo, category, own_cache, tmp_path_factory):
    def make(dataset=demo, **settings):
        model = {"base_width": 4, "depth": 2} | settings.pop("model", {})
        values = {"category": category, "architecture": "multiscale", "image_size": 32, "epochs": 3}
        return Task(
            job_id="brick-multiscale-0000",
            job=JobConfig(**{**values, "evaluate_every": 1, "model": model, **settings}),
            dataset=dataset,
            cache=own_cache,
            directory=JobDirectory(tmp_path_factory.mktemp("jobs") / "brick-multiscale-0000"),
            provenance={"sweep": "first"},
        )

    return make


class Reports(list):
    """What a job reports; keeps the state of the given epoch."""

    def __init__(self, keep: Path | None = None, epoch: int = 0) -> None:
        super().__init__()
        self._keep, self._epoch = keep, epoch

    def __call__(self, metrics, state):
        self.append(metrics)
        if self._keep is not None and metrics.get("epoch") == self._epoch:
            shutil.copyfile(state, self._keep)


@pytest.fixture(scope="module")
def finished(make_task, tmp_path_factory):
    """A job run to its end, its reports, and its state after the second of three epochs."""
    task, checkpoint = make_task(), tmp_path_factory.mktemp("state") / "checkpoint.pt"
    reports = Reports(checkpoint, epoch=2)
    run(task, report=reports, resume_from=lambda: None)
    return task, reports, checkpoint


def test_finished_job_leaves_bundle_result_and_pictures(finished):
    task, reports, _ = finished
    folder = task.directory
    assert sorted(path.name for path in folder.path.iterdir()) == [
        "bundle", "job.json", "pictures", "progress.jsonl", "result.json",
    ]  # fmt: skip
    assert JobConfig.from_dict(folder.read("job")) == task.job
    with Image.open(folder.path / "pictures" / "training.png") as picture:
        assert np.ptp(np.asarray(picture.convert("L"))) > 100  # something is drawn on it
    result, best = folder.read("result"), max(reports, key=lambda metrics: metrics["objective"])
    assert result["epoch"] == best["epoch"]
    assert result["score"] == pytest.approx(reports[-1]["best_objective"])
    bundle = Bundle.load(folder.bundle)
    assert result["false_alarms"] == bundle.provenance["false_alarms"]
    assert result["false_alarms"]["held_out"] == bundle.provenance["images"]["validation"]
    assert result["latency_ms"] > 0
    assert result["parameters"] == sum(weights.numel() for weights in bundle.model.parameters())
    assert (result["threshold"], result["pixel_threshold"]) == (bundle.threshold, bundle.pixel_threshold)
    assert result["false_regions"] == bundle.provenance["false_regions"]
    held_out, images = bundle.provenance["held_out"], bundle.provenance["images"]["validation"]
    assert {name: len(values) for name, values in held_out.items()} == dict.fromkeys(("score", *STATISTICS), images)
    assert sum(score > bundle.threshold for score in held_out["score"]) / images <= result["false_alarms"]["expected"]
    assert result["false_regions"]["held_out"] == bundle.provenance["images"]["validation"]
    assert bundle.provenance["sweep"] == "first" and bundle.provenance["job_id"] == task.job_id


def test_job_whose_network_is_too_slow_ends_before_it_sees_an_image(make_task, monkeypatch):
    monkeypatch.setattr(job_worker, "load_training_data", None)
    task, reports = dataclasses.replace(make_task(), latency_budget=1e-3), Reports()
    run(task, report=reports, resume_from=lambda: None)
    (told,) = reports
    latency, budget = told["too_slow"]
    assert budget == 1e-3 < latency and told["teaches"] and told["failure"].startswith("too slow: an image takes")
    assert task.directory.read("failure")["kind"] == "TooSlow" and not task.directory.bundle.exists()


def test_job_whose_model_turns_out_slower_than_its_network_ends_without_a_model(make_task, monkeypatch):
    monkeypatch.setattr(job_worker, "untrained_bundle", lambda _job, _device: None)  # as of one made by its training
    task, reports = dataclasses.replace(make_task(epochs=1), latency_budget=1e-3), Reports()
    run(task, report=reports, resume_from=lambda: None)
    assert reports[-1]["too_slow"][1] == 1e-3 and len(reports) == 2
    assert task.directory.read("result") is None and not task.directory.bundle.exists()


def test_job_is_timed_on_the_device_that_is_named(make_task):
    task, reports = dataclasses.replace(make_task(), latency_budget=1e9, latency_device="cuda"), Reports()
    run(task, report=reports, resume_from=lambda: None)
    if torch.cuda.is_available():
        assert task.directory.read("result")["latency_ms"] > 0
    else:
        assert "'cuda' cannot be used" in reports[-1]["failure"] and "too_slow" not in reports[-1]


def test_job_out_of_memory_on_a_part_of_a_gpu_names_the_part(make_task, monkeypatch):
    def exhausted(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(torch.Tensor, "backward", exhausted)
    task, reports = dataclasses.replace(make_task(), gpus=0.25), Reports()
    run(task, report=reports, resume_from=lambda: None)
    (failure,) = reports
    assert "out of memory" in failure["failure"] and "had 0.25 of a GPU: raise --gpus-per-trial" in failure["failure"]
    assert task.directory.read("failure")["kind"] == "OutOfMemory"
    # Of a group whose others do the same.
    monkeypatch.setattr(WorkerGroup, "on_every_rank", lambda _group, function: function())
    monkeypatch.setattr(WorkerGroup, "losses", lambda _group, model: model.losses)
    with pytest.raises(OutOfMemory):  # the other workers of a group would wait for ever
        run(task, report=reports, resume_from=lambda: None, group=WorkerGroup(0, 2))


def test_bundle_tells_a_test_image_from_its_copy_with_a_black_bar(finished, demo, category):
    task, _, _ = finished
    good = np.asarray(Image.open(min((demo / category / "test" / "good").iterdir())).convert("RGB"))
    marred = good.copy()
    marred[24:40] = 0
    bundle = Bundle.load(task.directory.bundle)
    assert bundle.predict(marred).score > bundle.predict(good).score


def test_every_evaluation_is_reported_and_kept(finished):
    task, reports, _ = finished
    assert [metrics["epoch"] for metrics in reports] == [1, 2, 3]
    assert all(metrics["objective"] == metrics["validation_score"] for metrics in reports)
    kept = [{**metrics, "objective": metrics["validation_score"]} for metrics in task.directory.progress()]
    assert kept == list(reports)


def test_resumed_job_ends_with_the_weights_of_one_that_was_never_stopped(finished, make_task):
    whole, reports, checkpoint = finished
    resumed, later = make_task(), Reports()
    run(resumed, report=later, resume_from=lambda: checkpoint)
    assert [metrics["epoch"] for metrics in later] == [3]
    assert later[0]["validation_score"] == pytest.approx(reports[2]["validation_score"], abs=1e-6)
    first, second = (Bundle.load(task.directory.bundle).model.state_dict() for task in (whole, resumed))
    for name, weights in first.items():
        torch.testing.assert_close(second[name], weights, rtol=1e-4, atol=1e-5)


def test_checkpoint_that_would_run_code_is_not_unpickled(make_task, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    torch.save({"epoch": 1, "model": Evil()}, tmp_path / "checkpoint.pt")
    task = make_task()
    run(task, report=Reports(), resume_from=lambda: tmp_path / "checkpoint.pt")
    assert not (tmp_path / "touched").exists()
    reason = task.directory.read("failure")["reason"]
    assert reason.startswith(f"{tmp_path / 'checkpoint.pt'}: no checkpoint of msad") and "remove it" in reason


def test_checkpoint_that_is_cut_off_ends_the_job_with_its_name(finished, make_task, tmp_path):
    whole = finished[2].read_bytes()
    for length in (0, 100, len(whole) // 2):
        (tmp_path / "checkpoint.pt").write_bytes(whole[:length])
        with pytest.raises(TrainingError, match=r"checkpoint\.pt: no checkpoint of msad, or a damaged one"):
            load_checkpoint(tmp_path / "checkpoint.pt", torch.device("cpu"))


@pytest.mark.parametrize(
    ("settings", "kind", "reason"),
    [
        ({"model": {"base_widht": 4}}, "ModelError", "base_width"),
        ({"loss_weights": {"l3": 1.0}}, "ModelError", "l3"),
        ({"image_size": 34}, "ModelError", "divisible by 4"),
        ({"category": "bricks"}, "DataError", "brick"),
        ({"learning_rate": 1e30, "gradient_clip": 0.0, "evaluate_every": 3}, "Diverged", "loss is not finite in"),
        ({"learning_rate": 1e30, "gradient_clip": 0.0}, "Diverged", "not finite in epoch 1"),
    ],
)
def test_job_that_cannot_succeed_is_reported_with_its_reason_and_returns(make_task, settings, kind, reason):
    task, reports = make_task(**settings), Reports()
    run(task, report=reports, resume_from=lambda: None)
    failure = task.directory.read("failure")
    assert failure["kind"] == kind and reason in failure["reason"]
    # The objective is in the report all the same: Tune ends the whole search at a result without it.
    bad = {"objective": 0.0, "best_objective": 0.0}
    assert reports[-1] == {"failure": failure["reason"], "teaches": kind != "DataError", **bad}
    assert not task.directory.bundle.exists() and task.directory.read("result") is None
    json.dumps(reports[-1])


def test_undecodable_training_image_is_the_jobs_reason(make_task, demo, category, tmp_path):
    shutil.copytree(demo / category / "train", tmp_path / category / "train")
    broken = max((tmp_path / category / "train" / "good").iterdir())
    broken.write_bytes(broken.read_bytes()[:300])
    task, reports = make_task(dataset=tmp_path), Reports()
    run(task, report=reports, resume_from=lambda: None)
    assert broken.name in reports[-1]["failure"]


def test_training_data_of_a_second_job_comes_from_the_cache(make_task, demo, tmp_path, monkeypatch):
    task = make_task()
    first = load_training_data(task.job, demo, tmp_path)
    monkeypatch.setattr("msad.cluster.workers.job_worker.make_synthetic_defects", lambda *_: pytest.fail("made again"))
    monkeypatch.setattr("msad.data_io.cache.read_image", lambda *_: pytest.fail("decoded again"))
    second = load_training_data(task.job, demo, tmp_path)
    for one, other in (
        (first.train_NHWC, second.train_NHWC),
        (first.validation_NHWC, second.validation_NHWC),
        (first.synthetic.images, second.synthetic.images),
        (first.synthetic.masks, second.synthetic.masks),
    ):
        assert isinstance(other, np.memmap)
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("by_copy", [False, True])
def test_what_is_kept_belongs_to_the_images_as_they_are_named_now(make_task, demo, category, tmp_path, by_copy):
    # As when 1.png ... 10.png become 001.png ... 010.png: the order of the names, and so the split, is another.
    shutil.copytree(demo / category / "train", tmp_path / "named" / category / "train")
    roots = [tmp_path / "named", tmp_path / ("renamed" if by_copy else "named")]
    job, cache = make_task().job, tmp_path / "cache"

    def look(root):
        data = load_training_data(job, root, cache)
        seen = {"train": np.array(data.train_NHWC), "validation": np.array(data.validation_NHWC)}
        for name, array in data.cached("seen", lambda: seen).items():
            np.testing.assert_array_equal(array, seen[name], err_msg=f"{name} is of another split")
        synthetic = data.synthetic
        for image, mask, source in zip(synthetic.images, synthetic.masks, synthetic.source, strict=True):
            np.testing.assert_array_equal((image != data.validation_NHWC[source]).any(axis=2), mask)
        return data

    before = look(roots[0])
    if by_copy:
        shutil.copytree(roots[0], roots[1])
    good = sorted((roots[1] / category / "train" / "good").iterdir())
    for path in good[:5]:
        path.rename(path.with_name(f"9{path.name}"))
    after = look(roots[1])
    assert after.identity.digest != before.identity.digest
    assert (after.validation_NHWC != before.validation_NHWC).any()


def test_job_on_other_images_than_the_sweep_began_with_fails_with_words(make_task, demo, category):
    task = dataclasses.replace(make_task(), identity="0" * 64)
    reports = Reports()
    run(task, report=reports, resume_from=lambda: None)
    assert f"the images of {category} are others" in reports[-1]["failure"]


def test_bundle_says_what_its_model_has_seen(finished, demo, category, own_cache):
    bundle, job = Bundle.load(finished[0].directory.bundle), finished[0].job
    seen = identify(demo, category, seed=job.seed, image_size=job.image_size, cache=own_cache)
    assert Identity.from_dict(bundle.provenance["identity"]) == seen


def test_known_defects_help_to_choose_and_are_told_in_bundle_and_result(make_task, with_known, category):
    task = make_task(with_known)
    run(task, report=Reports(), resume_from=lambda: None)
    bundle, result = Bundle.load(task.directory.bundle), task.directory.read("result")
    files = KnownDefectFiles.find(with_known, category)
    types = {name: files.defect_types.count(name) for name in files.defect_types}
    assert result["known_defects"] == bundle.provenance["known_defects"]
    assert result["known_defects"] == {
        "count": len(files), "types": types, "share": pytest.approx(known_share(len(files))), "taught": 0
    }  # fmt: skip
    assert {f"known/{name}" for name in types} < set(result["per_group"])
    assert [line.partition("  ")[0] for line in bundle.provenance["identity"]["known"]] == files.digests()
    assert (
        "identity" in bundle.provenance
        and f"{len(files)} known defects counted" in (task.directory.bundle / "MODEL_CARD.md").read_text()
    )


def test_good_image_that_stands_out_is_named_in_bundle_and_result(make_task, demo, category, tmp_path):
    """Of a memory every training image is scored by the others, so wherever the odd one lies it is noticed."""
    shutil.copytree(demo / category, tmp_path / category)
    good = tmp_path / category / "train" / "good"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(good / "odd.png")
    for index in range(8):  # fewer than twenty do not tell what is usual
        shutil.copy(sorted(good.glob("0*.png"))[index], good / f"again{index}.png")
    memory = {"architecture": "feature_memory", "image_size": 64, "epochs": 1}
    task = make_task(tmp_path, **memory, model={"rows": 100})
    task = dataclasses.replace(task, job=dataclasses.replace(task.job, model={"rows": 100}))
    run(task, report=Reports(), resume_from=lambda: None)
    assert task.directory.read("result")["suspects"][0] == f"{category}/train/good/odd.png"
    card = (task.directory.bundle / "MODEL_CARD.md").read_text()
    assert "Unlike the others, and perhaps no good ones" in card and f"`{category}/train/good/odd.png`" in card


def test_training_on_defects_pastes_some_and_judges_by_the_others(make_task, with_known, category):
    task = make_task(architecture="baseline", train_on_defects=True)
    data = load_training_data(task.job, with_known, task.node_cache)
    files = KnownDefectFiles.find(with_known, category)
    assert len(data.known) + len(data.taught) == len(files) and len(data.taught) == len(files) // 2
    assert data.taught.masked.all() and data.taught.masks.any(axis=(1, 2)).all()
    without = load_training_data(dataclasses.replace(task.job, train_on_defects=False), with_known, task.node_cache)
    assert len(without.known) == len(files) and without.taught is None
    assert without.identity.digest != data.identity.digest


@pytest.mark.parametrize("kind", [ValueError, RuntimeError])
def test_error_in_a_program_is_raised_and_is_no_word_on_the_configuration(make_task, monkeypatch, kind):
    def wrong(*_words, **_more):
        raise kind("operands could not be broadcast together")

    monkeypatch.setattr("msad.cluster.workers.job_worker.fit_products", wrong)
    task, reports = make_task(), Reports()
    with pytest.raises(kind, match="broadcast"):
        run(task, report=reports, resume_from=lambda: None)
    assert not reports and task.directory.read("failure") is None


def test_worker_without_a_compiler_remarks_what_that_costs(make_task, monkeypatch):
    monkeypatch.setattr(native, "_loaded", {})
    monkeypatch.setenv("CC", "no-such-compiler")
    task = make_task(category="bricks")  # which ends it at once
    run(task, report=Reports(), resume_from=lambda: None)
    remark = task.directory.read("remark")["remark"]
    assert "about 1.1 times as long as it could: no C compiler: no-such-compiler is not there" in remark
