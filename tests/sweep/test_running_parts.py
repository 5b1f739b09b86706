"""The parts of a running sweep without a cluster: what its jobs are given, their files, and how its winners end."""

from __future__ import annotations

import dataclasses
import io

import optuna
import pytest
from optuna.distributions import FloatDistribution
from rich.console import Console

from msad.cluster.trial_resources import TrialResources
from msad.cluster.workers.object_store import write_file
from msad.names import final_id
from msad.report.live import LiveView
from msad.report.reporter import Reporter
from msad.report.study_runs import StudyRuns
from msad.search.config import make_config
from msad.search.preflight import prepare
from msad.search.study import Study
from msad.sweep import winners
from msad.sweep.job_files import JobFiles, TrialFiles
from msad.sweep.tasks import Tasks
from msad.sweep.winners import Winners
from msad.workspace import Workspace

RESULT = {"epoch": 2, "threshold": 0.5, "parameters": 9, "score": 0.9}
SEEDS = 2


@pytest.fixture
def tasks(demo, category, own_cache, tmp_path):
    """The tasks of a sweep whose workers keep their files in a store, which is a folder here."""
    words = {"categories": (category,), "architectures": ("baseline",), "trials": 2, "final_seeds": SEEDS}
    store = {"worker_storage": f"file://{tmp_path}/store", "storage": tmp_path, "image_size": 32}
    config = make_config({"name": "first", "dataset": demo, **words, **store})
    plan = prepare(config, own_cache)
    return Tasks(config, Workspace(tmp_path / "first"), plan, TrialResources("train", 2, 0.5, 3, memory=7, workers=2))


@pytest.fixture
def study(tasks):
    """A finished study of two trials, the second of them the best."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    plan = tasks.plan.studies[0]
    space = {"learning_rate": FloatDistribution(1e-4, 1e-2, log=True)}
    study = Study(plan.job, space, 2, optuna.storages.InMemoryStorage(), "none", id=plan.id)
    for value in (0.5, 0.9):
        study.tell(study.ask()[0], value=value)
    return study


@pytest.fixture
def parts(tasks, study):
    """The sweep's job files and winners, and a list of what was told."""
    said, records = [], {}
    view = LiveView([study], 1, Console(file=io.StringIO()))
    tracker = type("Records", (), {"put": lambda _self, record: records.update({record.record_id: record})})()
    reporter = Reporter(tasks.workspace, view, StudyRuns(tasks.workspace, tracker, tasks.tags, SEEDS))
    files = JobFiles(tasks, [study], said.append)
    return files, Winners(tasks, files, reporter), said, records


def test_task_has_its_part_of_the_cluster_and_says_what_it_sees(tasks, study):
    task = tasks.make("a", study.base)
    assert (task.cpus, task.gpus, task.memory, task.workers) == (2, 0.5, 7, 2)
    assert task.store.endswith("/store/first/jobs/a") and task.directory == tasks.workspace.job("a")
    assert task.identity == tasks.tags(study.base)["msad.identity"] == tasks.plan.identity(study.base).digest
    assert task.provenance["executor"] == "train" and tasks.make("a", study.base, "direct").provenance["executor"] == (
        "direct"
    )


def test_ended_trial_is_brought_and_cleared_before_it_is_told_and_a_remark_is_told_once(tasks, study, parts):
    files, _, said, _ = parts
    heard = []

    class Reporter:
        def ended(self, _study, job_id):
            directory = tasks.workspace.job(job_id)
            heard.append((directory.read("result"), directory.checkpoint.exists(), len(said)))

    trials = TrialFiles(files, Reporter())
    for record in study.records():
        directory = tasks.workspace.job(record.job_id)
        directory.write("remark", {"remark": "no compiler"})
        directory.checkpoint.touch()
        write_file(tasks.store(record.job_id), "result.json", b'{"epoch": 1}')
        write_file(tasks.store(record.job_id), "remark.json", b'{"remark": "no compiler"}')
        trials.ended(study, record.job_id)
    assert heard == [({"epoch": 1}, False, 1)] * 2 and said == ["no compiler"]


def test_results_that_the_store_alone_has_are_brought_and_checkpoints_of_ended_trials_removed(tasks, study, parts):
    files, kept = parts[0], tasks.workspace.job(study.records()[0].job_id)
    for record in study.records():
        write_file(tasks.store(record.job_id), "result.json", b'{"epoch": 1}')
    kept.path.mkdir(parents=True)
    kept.checkpoint.touch()
    files.fetch_missing()
    files.clear_ended()
    assert all(tasks.workspace.job(record.job_id).read("result") for record in study.records())
    assert not kept.checkpoint.exists()


@pytest.mark.parametrize("alike", [True, False])
def test_model_of_a_ray_train_trial_is_the_first_seeds_and_each_seed_that_fails_is_named(
    tasks, study, parts, monkeypatch, alike
):
    _, sees_to, _, records = parts
    best = tasks.workspace.job(study.best().user_attrs["job_id"])
    trained = study.winner() if alike else dataclasses.replace(study.winner(), epochs=1)
    best.write("job", trained.to_dict())
    best.write("result", {**RESULT, "executor": "train"})
    queued = []

    def run(queue, resources, train_storage):
        assert resources is tasks.resources and train_storage == tasks.train_storage
        for final in queue:
            final.started()
            queued.append((final.task.job.seed, final.source and final.source.job_id))
            if final.task.job.seed == study.base.seed:
                final.task.directory.write("result", RESULT)
                final.task.directory.write("unmeasured", {"reason": "a.png: damaged"})
            else:
                final.task.directory.write("failure", {"reason": "it diverged"})
            final.ended()

    monkeypatch.setattr(winners, "run_finals", run)
    failed = sees_to.train_and_test([study])
    seed = study.base.seed
    assert queued == [(seed, study.best().user_attrs["job_id"] if alike else None), (seed + 1, None)]
    assert failed == {f"{study.key} with seed {seed + 1}": "it diverged"}
    assert sees_to.unmeasured == {study.key: "a.png: damaged"}
    assert records[f"{final_id(study.id)}-seed1"].status == "failed" and records[study.id].status == "complete"


def test_winner_that_is_tested_is_told_and_not_queued_again(tasks, study, parts, monkeypatch):
    _, sees_to, _, records = parts
    for index in range(SEEDS):
        final = tasks.workspace.final(study.id, index)
        final.write("result", RESULT)
        final.write("test", {"image_auroc": 0.9})
    monkeypatch.setattr(winners, "run_finals", lambda queue, *_words: queue and pytest.fail("it was trained again"))
    assert sees_to.train_and_test([study]) == {} and records[study.id].status == "complete"


@pytest.mark.parametrize("kept", [True, False])
def test_products_take_their_parts_of_the_trial_that_won_or_of_one_training_of_all(
    demo, own_cache, tmp_path, monkeypatch, kept
):
    words = {"joint": ("brick", "gear"), "architectures": ("baseline",), "trials": 1, "image_size": 32}
    config = make_config({"name": "first", "dataset": demo, "storage": tmp_path, **words})
    plan, workspace = prepare(config, own_cache), Workspace(tmp_path / "first")
    tasks = Tasks(config, workspace, plan, TrialResources("train", 1, 0, 1))
    planned = plan.studies[-1]
    space = {"learning_rate": FloatDistribution(1e-4, 1e-2, log=True)}
    whole = Study(planned.job, space, 1, optuna.storages.InMemoryStorage(), "none", id=planned.id)
    job_id, job = whole.ask()
    whole.tell(job_id, value=0.5)
    trial = workspace.job(job_id)
    trial.write("job", job.to_dict())
    trial.write("result", {**RESULT, "executor": "train" if kept else "direct"})
    rows = [whole.of_product(one.category, id) for one, id in zip(job.of_products(), planned.parts, strict=True)]
    view, queued = LiveView([whole], 1, Console(file=io.StringIO())), []
    tracker = type("Records", (), {"put": lambda _self, _record: None})()
    reporter = Reporter(workspace, view, StudyRuns(workspace, tracker, tasks.tags))
    monkeypatch.setattr(winners, "run_finals", lambda queue, *_words: queued.extend(queue))
    Winners(tasks, JobFiles(tasks, [whole], print), reporter).train_and_test(rows)
    assert [final.task.job_id for final in queued] == ["brick-baseline.joint-final", "gear-baseline.joint-final"]
    assert [final.task.job.category for final in queued] == ["brick", "gear"]
    origin = workspace.job(job_id if kept else final_id(whole.id))
    assert [final.source.directory for final in queued] == [origin.product(0), origin.product(1)]
    together = [final.together and final.together.job_id for final in queued]
    assert together == [None if kept else final_id(whole.id)] * 2
    assert kept or queued[0].together.job.is_whole
    assert queued[0].task.identity == plan.digest(plan.studies[0].job)
