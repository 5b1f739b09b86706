"""One study: Optuna's search for the best configuration of one category × architecture.

The truth about every trial (parameters, state, reported values) is in Optuna's own storage, written through at every
step by the one process that runs the sweep. So a sweep killed at any moment resumes from there: a trial that was
running is taken up again under its own number, and pruning decides from everything ever reported. Optuna's
ask-and-tell interface is used as it is; Ray's `OptunaSearch` neither prunes by Optuna, nor resumes from a persistent
storage, nor runs several studies side by side in one Tuner.

Because no other process writes, what has been read or written once is not read again: the questions that a sweep asks
at every event and twice a second (how many are done, which is the best) are answered from memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from models import registry
from orchestrator.job_config import JobConfig
from orchestrator.names import study_id
from orchestrator.parameters import written_out

PRUNERS = {
    # Asynchronous successive halving (Li et al., MLSys 2020, arXiv 1810.05934): at each rung the best third goes on.
    "asha": lambda grace: optuna.pruners.SuccessiveHalvingPruner(min_resource=grace, reduction_factor=3),
    "median": lambda grace: optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=grace),
    "none": lambda grace: optuna.pruners.NopPruner(),
}
STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
GRACE_EPOCHS = 4  # no trial is pruned before: the validation score of the first epochs is mostly chance


@dataclass(frozen=True)
class Counts:
    """How many of a study's trials are in which state; `done` is complete + pruned + failed."""

    complete: int
    pruned: int
    failed: int
    running: int

    @property
    def done(self) -> int:
        return self.complete + self.pruned + self.failed


@dataclass(frozen=True)
class TrialRecord:
    """A trial as it stands: `state` is `running`, `complete`, `pruned` or `failed`, the last with a `failure`."""

    job_id: str
    job: JobConfig
    state: str
    value: float | None
    failure: str | None


class Study:
    """The search of one category × architecture.

    Parameters
    ----------
    base
        The job that every trial varies.
    space
        Slash paths into the job and their Optuna distributions (`search_spaces.space`); empty for a single fixed job.
    trials
        How many to run, over all resumptions.
    storage
        An open Optuna storage, or its address.
    pruner
        `asha`, `median` or `none`.
    id
        What stands for the study in job IDs, among those of its sweep (`names.study_ids`); None: that of a study alone.
    """

    def __init__(
        self,
        base: JobConfig,
        space: Mapping[str, BaseDistribution],
        trials: int,
        storage: optuna.storages.BaseStorage | str,
        pruner: str,
        id: str | None = None,
    ) -> None:
        self.id = id or study_id(f"{base.category}/{base.architecture}")
        self.base, self.space, self.trials = base, dict(space), trials
        self._optuna = optuna.create_study(
            storage=storage,
            study_name=self.key,
            direction="maximize",
            load_if_exists=True,
            pruner=PRUNERS[pruner](max(GRACE_EPOCHS, base.evaluate_every, base.epochs // 9)),
        )
        known = self._optuna.get_trials(deepcopy=False)
        # A resumed study must not draw its start-up trials over again, hence the number of trials in the seed.
        seed = zlib.crc32(f"{base.seed}/{self.key}/{len(known)}".encode())
        # Parallel trials would all go to the same promising place but for the constant liar.
        self._optuna.sampler = optuna.samplers.TPESampler(
            seed=seed, multivariate=True, constant_liar=True, n_startup_trials=min(10, max(4, trials // 3))
        )
        self._trials = {job_id: trial for trial in known if (job_id := _job_id(trial))}  # those handed out, in order
        self._interrupted = [trial for trial in self._trials.values() if trial.state == TrialState.RUNNING]
        for trial in known:
            if trial.state == TrialState.RUNNING and not _job_id(trial):  # killed before it was handed out
                self._optuna.tell(trial.number, state=TrialState.FAIL)
        self._running: dict[str, optuna.Trial] = {}
        self._pruned: set[str] = set()
        if not known and self.space:
            # The architecture's defaults are always among the candidates, so a search never ends below them.
            self._optuna.enqueue_trial(default_parameters(base, self.space))

    @property
    def key(self) -> str:
        """`CATEGORY/ARCHITECTURE`."""
        return f"{self.base.category}/{self.base.architecture}"

    def ask(self) -> tuple[str, JobConfig] | None:
        """Return the next job with its ID, an interrupted one first; None when all are handed out."""
        if self._interrupted:
            frozen = self._interrupted.pop(0)
            trial = optuna.Trial(self._optuna, frozen._trial_id)
            job_id = _job_id(frozen)
        elif len(self._trials) < self.trials:
            trial = self._optuna.ask(self.space)
            job_id = f"{self.id}-{trial.number:04d}"
            trial.set_user_attr("job_id", job_id)
            self._trials[job_id] = self._optuna._storage.get_trial(trial._trial_id)
        else:
            return None
        self._running[job_id] = trial
        return job_id, self.base.with_parameters(trial.params)

    def report(self, job_id: str, epoch: int, value: float) -> bool:
        """Record a trial's objective after an epoch; return whether it is to be stopped now."""
        self.remember(job_id, epoch, value)
        trial = self._running[job_id]
        if epoch < self.base.epochs and trial.should_prune():
            self._pruned.add(job_id)
            return True
        return False

    def remember(self, job_id: str, epoch: int, value: float) -> None:
        """Record a trial's objective after an epoch, and decide nothing; the first one of an epoch stays."""
        known = self._trials[job_id].intermediate_values
        if epoch not in known:  # a retried trial comes by the same epoch again
            self._running[job_id].report(value, epoch)
            known[epoch] = value

    def tell(self, job_id: str, value: float | None = None, failure: str | None = None) -> None:
        """Close a trial: complete with its value, failed with a reason, or pruned where `report` had said so."""
        trial = self._running.pop(job_id)
        if failure is not None:
            trial.set_user_attr("failure", failure[:2000])
            ended = self._optuna.tell(trial, state=TrialState.FAIL)
        elif job_id in self._pruned:
            ended = self._optuna.tell(trial, state=TrialState.PRUNED)
        else:
            ended = self._optuna.tell(trial, value)
        self._trials[job_id] = ended

    def counts(self) -> Counts:
        states = [trial.state for trial in self.frozen_trials()]
        return Counts(
            complete=states.count(TrialState.COMPLETE),
            pruned=states.count(TrialState.PRUNED),
            failed=states.count(TrialState.FAIL),
            running=len(self._running),
        )

    @property
    def finished(self) -> bool:
        return self.counts().done >= self.trials

    def best(self) -> FrozenTrial | None:
        """Return the complete trial of the highest value, the earliest of equals; None while there is none."""
        complete = [trial for trial in self.frozen_trials() if trial.state == TrialState.COMPLETE]
        return max(complete, key=lambda trial: (trial.value, -trial.number), default=None)

    def winner(self) -> JobConfig | None:
        """Return the best trial's job; the base job where there was nothing to search."""
        if not self.trials:
            return self.base
        best = self.best()
        return self.base.with_parameters(best.params) if best else None

    def records(self) -> list[TrialRecord]:
        """Return every trial in the order they were handed out."""
        return [self.record(job_id) for job_id in self._trials]

    def record(self, job_id: str) -> TrialRecord:
        """Return one trial."""
        trial = self._trials[job_id]
        return TrialRecord(
            job_id=job_id,
            job=self.base.with_parameters(trial.params),
            state=STATES.get(trial.state, "running"),
            value=trial.value,
            failure=trial.user_attrs.get("failure"),
        )

    def importances(self) -> dict[str, float]:
        """Return the share of the value's variance that each parameter explains, over the complete trials.

        By Optuna's fANOVA (Hutter et al., ICML 2014), of fewer trees where many trials make each one costly.
        RuntimeError or ValueError: there is too little to tell.
        """
        trees = max(8, min(64, 16_000 // max(1, self.counts().complete)))
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=trees, seed=0)
        return optuna.importance.get_param_importances(self._optuna, evaluator=evaluator)

    def frozen_trials(self) -> list[FrozenTrial]:
        """Return Optuna's own record of every trial that was handed out, in their order."""
        return list(self._trials.values())


def default_parameters(base: JobConfig, space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """Return the point of a space that the defaults are, without paths whose default lies outside of it."""
    off = dict.fromkeys((f"loss_weights/{term}" for term in registry.architecture(base.architecture).loss_terms), 0.0)
    defaults = off | written_out(dataclasses.replace(base, loss_weights={})).flat() | base.flat()
    point = {}
    for path, distribution in space.items():
        with contextlib.suppress(KeyError, ValueError, TypeError):  # what Optuna raises for a value outside
            if distribution._contains(distribution.to_internal_repr(defaults[path])):
                point[path] = defaults[path]
    return point


def _job_id(trial: FrozenTrial) -> str | None:
    return trial.user_attrs.get("job_id")
