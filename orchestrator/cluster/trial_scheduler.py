"""What Ray Tune does with the trials of a sweep that run: stops what a study prunes, tries anew what was lost, ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.stopper import Stopper

from msad.cluster.ray_private import crash_of, crash_words, forget_failures
from msad.cluster.sweep_search import SweepSearch
from msad.errors import crash_reason, first_line, full_disk


class OptunaPruning(FIFOScheduler):
    """Stops a trial where its study's Optuna pruner says so, and bears with workers that are lost.

    Tune gives a trial a few more attempts (`FailureConfig`). Here each new epoch gives it as many again: on a cluster
    whose nodes come and go a long trial loses several workers, while one that crashes by itself gets no further.
    """

    def __init__(self, search: SweepSearch) -> None:
        super().__init__()
        self._search = search
        self._furthest: dict[str, int] = {}  # Tune's trial ID -> its last epoch

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        with self._search.keeping():
            return self._judge(trial, result)
        return TrialScheduler.STOP

    def _judge(self, trial: Trial, result: dict[str, Any]) -> str:
        if "failure" not in result and "epoch" in result and trial.trial_id in self._search.study_of:
            study, job_id = self._search.study_of[trial.trial_id]
            self._search.listener.evaluated(study, job_id)
            if (epoch := int(result["epoch"])) > self._furthest.get(trial.trial_id, 0):
                self._furthest[trial.trial_id] = epoch
                forget_failures(trial)
            if study.report(job_id, epoch, float(result["objective"])):
                return TrialScheduler.STOP
        return TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        reason = crash_reason(crash_words(trial))
        self._search.errors[trial.trial_id] = f"its worker crashed, and again when tried anew: {reason}"
        if full := full_disk(crash_of(trial)):
            self._search.unwritten[trial.trial_id] = first_line(full)

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Ending(Stopper):
    """Ends the experiment where this process has met an error of its own."""

    def __init__(self, search: SweepSearch) -> None:
        self._search: SweepSearch | None = search

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._search is not None and self._search.broken is not None

    def __getstate__(self) -> dict[str, Any]:
        return {"_search": None}


class LossNotes(Callback):
    """Tells the user of every worker that is lost, by `say`, while Tune tries its trial anew."""

    def __init__(self, search: SweepSearch, say: Callable[[str], object]) -> None:
        self._search, self._say = search, say

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **_info: Any) -> None:
        _, job_id = self._search.study_of[trial.trial_id]
        self._say(f"{job_id}: {crash_reason(crash_words(trial))}; it is tried again, from its last checkpoint")

    def __getstate__(self) -> dict[str, Any]:
        return {}
