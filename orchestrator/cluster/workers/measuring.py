"""What a worker does on the test split: measures a trained winner, or, for the report alone, a finished trial."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msad.cluster.workers.task import Task
from msad.cluster.workers.worker_storage import working_copy
from msad.data_io.errors import NoTestImages
from msad.errors import USER_ERRORS, BundleError

if TYPE_CHECKING:
    from msad.bundle.evaluation import Evaluation


def measure_winner(values: dict[str, Any], _trained: object) -> None:
    """Measure a trained winner on the test split; the first time in a sweep that a test file is opened."""
    from msad.bundle.bundle_files import amend
    from msad.bundle.evaluation import save_tables
    from msad.pictures.gallery import save_evaluation

    with working_copy(Task.from_dict(values)) as (task, _):
        if task.directory.read("failure"):
            return
        task.directory.clear_unfinished()
        (task.directory.path / "unmeasured.json").unlink(missing_ok=True)
        try:
            evaluation = _measure(task)
            save_evaluation(evaluation, task.directory.path / "pictures")
            save_tables(evaluation, task.directory.path, prefix="test_")
            per_type = evaluation.per_defect_type.to_dict(orient="index")
            more = {"per_defect_type": per_type, "remarks": evaluation.remarks}
            amend(task.directory.bundle, {"test": {**evaluation.metrics, **more}})
            task.directory.write("test_remarks", {"remarks": evaluation.remarks})
            task.directory.write("test", evaluation.metrics)
        except NoTestImages:  # good images alone are enough to search
            amend(task.directory.bundle, {"test": {}})
            task.directory.write("test", {})
        except BundleError as error:  # there is no model to deliver
            task.directory.write("failure", {"reason": f"evaluation on the test split: {error}", "kind": "Evaluation"})
        except USER_ERRORS as error:
            amend(task.directory.bundle, {"unmeasured": str(error)})
            task.directory.write("unmeasured", {"reason": str(error), "kind": type(error).__name__})


def measure_trial(values: dict[str, Any]) -> None:
    """Measure a finished trial on the test split, for the report on its study's selection."""
    with working_copy(Task.from_dict(values)) as (task, _):
        task.directory.clear_unfinished()
        (task.directory.path / "test_report_failure.json").unlink(missing_ok=True)
        try:
            task.directory.write("test_report", _measure(task).metrics)
        except USER_ERRORS as error:
            task.directory.write("test_report_failure", {"reason": str(error), "kind": "Evaluation"})


def _measure(task: Task) -> Evaluation:
    import torch

    from msad.bundle.bundles import Bundle
    from msad.bundle.evaluation import evaluate
    from msad.models.registry import use

    torch.set_num_threads(max(1, int(task.cpus)))
    use(task.job.architecture)  # the sweep's own configuration names it, not a file from elsewhere
    bundle = Bundle.load(task.directory.bundle, device="cuda" if task.gpus else "cpu")
    return evaluate(bundle, task.dataset, task.job.category, task.node_cache, layout=task.layout)
