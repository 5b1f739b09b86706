"""When a weak trial is stopped: a decision by what trials have reported, and by nothing else.

Optuna's own halving keeps in its database which rungs a trial has passed, and writes that before it decides: a sweep
killed in between would let a trial go on that was to be stopped. Here the same values give the same decision, however
often and by whichever process they are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.study import Study
from optuna.trial import FrozenTrial

GRACE_EPOCHS = 4  # no trial is pruned before: the validation score of the first epochs is mostly chance
REDUCTION = 3  # of so many trials at a rung one goes on
NAMES = ("asha", "median", "none")


class Halving(BasePruner):
    """Asynchronous successive halving (Li et al., MLSys 2020, arXiv 1810.05934): at each rung the best third goes on.

    Parameters
    ----------
    rungs
        Epochs, ascending. A trial is judged at its first value at or after each of them, against all trials that have
        come so far. What counts is the best of its values until then, as its best is what a trial ends with: a single
        one says little (`benchmarks/rungs.py`).
    """

    def __init__(self, rungs: Sequence[int]) -> None:
        self.rungs = tuple(rungs)

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Return whether a trial is to be stopped after its last value."""
        step = trial.last_step
        reached = [rung for rung in self.rungs if _first_step(trial, rung) == step]
        if step is None or not reached:
            return False
        others = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        for rung in reached:
            competing = [_best(other, at) for other in others if (at := _first_step(other, rung)) is not None]
            if not promoted(_best(trial, step), competing):
                return True
        return False


def promoted(value: float, others: Sequence[float]) -> bool:
    """Return whether a value is in the best third of itself and others, of fewer than six the best."""
    competing = sorted([value, *others], reverse=True)
    return math.isfinite(value) and value >= competing[max(1, len(competing) // REDUCTION) - 1]


def make_pruner(name: str, epochs: int, evaluate_every: int) -> BasePruner:
    """Return one of `NAMES` for trials of so many epochs."""
    grace = max(GRACE_EPOCHS, evaluate_every, epochs // 9)
    if name == "asha":
        return Halving([rung for rung in (grace, REDUCTION * grace) if rung < epochs])
    return MedianPruner(n_startup_trials=4, n_warmup_steps=grace) if name == "median" else NopPruner()


def _first_step(trial: FrozenTrial, rung: int) -> int | None:
    return min((step for step in trial.intermediate_values if step >= rung), default=None)


def _best(trial: FrozenTrial, until: int) -> float:
    """Return the best value that a trial has had until a step; of one that is no number there, minus infinity."""
    values = trial.intermediate_values
    if math.isnan(values[until]):
        return -math.inf
    return max(value for step, value in values.items() if step <= until and not math.isnan(value))
