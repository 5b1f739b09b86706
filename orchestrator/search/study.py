"""One study: Optuna's search for the best configuration of one category × architecture.

The truth about every trial (parameters, state, reported values) is in Optuna's own storage, written through at every
step by the one process that runs the sweep. So a sweep killed at any moment resumes from there: a trial that was
running is taken up again under its own number, and pruning decides from everything ever reported. Optuna's
ask-and-tell interface is used as it is; Ray's `OptunaSearch` neither prunes by Optuna, nor resumes from a persistent
storage, nor runs several studies side by side in one Tuner.

What takes several writes is begun so that the next process can finish it: a trial that was not handed out yet is drawn
to its end, from a seed of its own number, so that it becomes what it would have been; that a trial is to be stopped is
written before the value by which it is, and why it failed before its end.

Because no other process writes, what has been read or written once is not read again: the questions that a sweep asks
at every event and twice a second (how many are done, which is the best) are answered from memory.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from msad.models import registry
from msad.names import study_id
from msad.search.pruning import make_pruner
from msad.search.slow_trials import MOST_SLOW, SLOW, network_of, trials_due, words_of
from msad.search.sweep_plan import study_key
from msad.training.job_config import JobConfig
from msad.training.parameters import written_out

STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
# What Optuna keeps of a trial beside its parameters and values: the epoch and value after which it was stopped, why it
# failed, and whether of its own configuration.
STOPPED, FAILURE, TEACHES = "stopped", "failure", "failure_teaches"

_MOST_SKIPPED = 100  # draws in a row of networks that are known to be too slow


@dataclass(frozen=True)
class Counts:
    """How many of a study's trials are in which state; `done` is complete + pruned + failed.

    Those that are too slow were not trained, and do not count.
    """

    complete: int
    pruned: int
    failed: int
    too_slow: int
    running: int

    @property
    def done(self) -> int:
        return self.complete + self.pruned + self.failed


@dataclass(frozen=True)
class TrialRecord:
    """A trial as it stands: `state` is `running`, `complete`, `pruned`, `failed` or `too_slow`.

    The last two have a `failure` that says why.
    """

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
    has_budget
        Whether a trial may be `too_slow`: then as many more are handed out, up to `MOST_SLOW` times `trials`.
    id
        What stands for the study in job IDs, among those of its sweep (`names.study_ids`); None: that of a study alone.
    name
        What Optuna knows it by; None: its key.
    """

    def __init__(
        self,
        base: JobConfig,
        space: Mapping[str, BaseDistribution],
        trials: int,
        storage: optuna.storages.BaseStorage | str,
        pruner: str,
        *,
        has_budget: bool = False,
        id: str | None = None,
        name: str | None = None,
    ) -> None:
        self.id = id or study_id(study_key(base))
        self.base, self.space, self.trials, self.has_budget = base, dict(space), trials, has_budget
        self.whole = self
        self._optuna = optuna.create_study(
            storage=storage,
            study_name=name or self.key,
            direction="maximize",
            load_if_exists=True,
            pruner=make_pruner(pruner, base.epochs, base.evaluate_every),
        )
        known = self._optuna.get_trials(deepcopy=False)
        self._trials = {job_id: trial for trial in known if (job_id := _job_id(trial))}  # those handed out, in order
        running = [trial for trial in known if trial.state == TrialState.RUNNING]
        self._undrawn = [trial for trial in running if not _job_id(trial)]
        self._interrupted = [trial for trial in running if _job_id(trial)]
        ended = [trial for trial in known if trial.state in STATES]
        self._skipped = sum(not _job_id(trial) for trial in ended)
        self._nothing_left = False
        self._running: dict[str, optuna.Trial] = {}
        self._pruned: set[str] = set()
        for trial in list(self._interrupted):
            if {FAILURE, STOPPED, SLOW} & trial.user_attrs.keys():  # it has ended, and the last word was not written
                self._interrupted.remove(trial)
                self._running[_job_id(trial)] = optuna.Trial(self._optuna, trial._trial_id)
                self._end(_job_id(trial))
        if not known and self.space:
            # The architecture's defaults are always among the candidates, so a search never ends below them.
            self._optuna.enqueue_trial(default_parameters(base, self.space))

    @property
    def key(self) -> str:
        """`CATEGORY/ARCHITECTURE`."""
        return study_key(self.base)

    def of_product(self, category: str, id: str) -> Study:
        """Return what this study of several products is to one of them: the same trials, under its own key and ID.

        It is for what comes after the search, which is `whole`'s.
        """
        part = copy.copy(self)
        part.base, part.id = dataclasses.replace(self.base, category=category), id
        return part

    def ask(self) -> tuple[str, JobConfig] | None:
        """Return the next job with its ID, an interrupted one first; None when all are handed out."""
        if self._interrupted:
            frozen = self._interrupted.pop(0)
            trial = optuna.Trial(self._optuna, frozen._trial_id)
            job_id = _job_id(frozen)
        elif len(self._trials) < trials_due(self.trials, len(self._too_slow())):
            if (trial := self._draw_within_budget()) is None:
                return None
            job_id = f"{self.id}-{trial.number:04d}"
            trial.set_user_attr("job_id", job_id)
        else:
            return None
        self._running[job_id] = trial
        # A copy of its own: a storage in memory would give what it keeps itself.
        self._trials[job_id] = copy.deepcopy(self._optuna._storage.get_trial(trial._trial_id))
        return job_id, self.base.with_parameters(trial.params)

    def _draw_within_budget(self) -> optuna.Trial | None:
        """Return a trial whose network is not known to be too slow; None where hardly any other is drawn."""
        for _ in range(_MOST_SKIPPED):
            trial = self._draw()
            network = network_of(self.base.with_parameters(trial.params))
            known = (one for one in self._too_slow() if network_of(self.base.with_parameters(one.params)) == network)
            if (twin := next(known, None)) is None:
                return trial
            self._mark_slow(trial, *twin.user_attrs[SLOW])
            self._optuna.tell(trial, state=TrialState.PRUNED)
            self._skipped += 1
        self._nothing_left = True
        return None

    def _too_slow(self) -> list[FrozenTrial]:
        """Return the trials that were handed out and not trained."""
        return [trial for trial in self._trials.values() if SLOW in trial.user_attrs]

    def _mark_slow(self, trial: optuna.Trial, latency: float, budget: float) -> None:
        trial.set_user_attr(SLOW, [latency, budget])
        if "latency" not in trial.constraints:  # which keeps the sampler away, the farther the slower
            trial.set_constraint("latency", latency / budget - 1)

    def _draw(self) -> optuna.Trial:
        """Return a trial with all its parameters, one that another process has begun to draw before a new one."""
        self._seed()
        undrawn = self._undrawn.pop(0) if self._undrawn else None
        trial = optuna.Trial(self._optuna, undrawn._trial_id) if undrawn else self._optuna.ask()
        for path, distribution in self.space.items():
            self._seed(path)
            trial._suggest(path, distribution)  # what was drawn already, or enqueued, stays
        return trial

    def _seed(self, path: str = "") -> None:
        """Have a sampler draw by nothing but the number of the trial, the parameter, and the trials that have ended.

        So a resumed study neither draws its start-up trials over again nor draws others than an undisturbed one would.
        """
        seed = zlib.crc32(f"{self.base.seed}/{self.key}/{len(self._trials) + self._skipped}/{path}".encode())
        # Parallel trials would all go to the same promising place but for the constant liar.
        self._optuna.sampler = optuna.samplers.TPESampler(
            seed=seed, multivariate=True, constant_liar=True, n_startup_trials=min(10, max(4, self.trials // 3))
        )

    def report(self, job_id: str, epoch: int, value: float) -> bool:
        """Record a trial's objective after an epoch; return whether it is to be stopped now.

        The first value of an epoch stays, and is judged once: a trial that is tried again comes by the same epoch.
        """
        frozen = self._trials[job_id]
        if epoch not in frozen.intermediate_values:
            frozen.intermediate_values[epoch] = value
            if epoch < self.base.epochs and self._optuna.pruner.prune(self._optuna, frozen):
                self._running[job_id].set_user_attr(STOPPED, [epoch, value])
                self._pruned.add(job_id)
            self._running[job_id].report(value, epoch)
        return job_id in self._pruned

    def tell(
        self,
        job_id: str,
        value: float | None = None,
        failure: str | None = None,
        *,
        teaches: bool = False,
        too_slow: tuple[float, float] | None = None,
    ) -> None:
        """Close a trial: complete with its value, failed with a reason, or pruned where `report` had said so.

        Where its configuration is what it failed of, the failure `teaches`: Optuna's sampler keeps away from there.
        `too_slow` is what an image takes by its network in ms and the budget, of a trial that was not trained for that.
        """
        if too_slow is not None:
            self._mark_slow(self._running[job_id], *too_slow)
            self._end(job_id)
            return
        if failure is not None and job_id not in self._pruned:
            trial = self._running[job_id]
            if teaches:
                trial.set_user_attr(TEACHES, True)
            trial.set_user_attr(FAILURE, failure[:2000])
        self._end(job_id, value)

    def _end(self, job_id: str, value: float | None = None) -> None:
        """Write a trial's last word, by what was written of it before; this may be the second attempt."""
        trial = self._running.pop(job_id)
        known = trial.user_attrs
        if STOPPED in known:
            epoch, reported = known[STOPPED]
            if epoch not in self._optuna._storage.get_trial(trial._trial_id).intermediate_values:
                trial.report(reported, epoch)
            ended = self._optuna.tell(trial, state=TrialState.PRUNED)
        elif SLOW in known:
            ended = self._optuna.tell(trial, state=TrialState.PRUNED)
        elif TEACHES in known and FAILURE in known:
            if "failure" not in trial.constraints:  # so that it ranks below every other, whatever it had reported
                trial.set_constraint("failure", 1.0)
            ended = self._optuna.tell(trial, state=TrialState.PRUNED)
        elif FAILURE in known:
            ended = self._optuna.tell(trial, state=TrialState.FAIL)  # which samplers leave out
        else:
            ended = self._optuna.tell(trial, value)
        self._trials[job_id] = ended

    def counts(self) -> Counts:
        states = [state_of(trial) for trial in self.frozen_trials()]
        return Counts(
            complete=states.count("complete"),
            pruned=states.count("pruned"),
            failed=states.count("failed"),
            too_slow=states.count("too_slow"),
            running=len(self._running),
        )

    @property
    def finished(self) -> bool:
        counts = self.counts()
        ended = counts.done + counts.too_slow
        return self._nothing_left or ended >= trials_due(self.trials, counts.too_slow)

    @property
    def most_left(self) -> int:
        """How many more trials may be handed out, were each that can be too slow."""
        counts = self.counts()
        most = trials_due(self.trials, MOST_SLOW * self.trials) if self.has_budget else self.trials
        return most - counts.done - counts.too_slow

    @property
    def may_draw_more(self) -> bool:
        """Whether more trials may be handed out when those that run have ended, though now there are none."""
        return self.has_budget and bool(self._running) and not self._nothing_left

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
            state=state_of(trial),
            value=trial.value,
            failure=trial.user_attrs.get(FAILURE) or words_of(trial),
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


def state_of(trial: FrozenTrial) -> str:
    """Return a trial's state as `TrialRecord` has it: one that failed of its configuration is pruned to Optuna."""
    if SLOW in trial.user_attrs:
        return "too_slow"
    return "failed" if FAILURE in trial.user_attrs else STATES.get(trial.state, "running")


def _job_id(trial: FrozenTrial) -> str | None:
    return trial.user_attrs.get("job_id")
