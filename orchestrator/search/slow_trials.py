"""Trials whose networks take longer for an image than a budget allows, and so are not trained."""

from __future__ import annotations

from optuna.trial import FrozenTrial

from msad.errors import TooSlow
from msad.training.job_config import JobConfig

SLOW = "too_slow"
"""What Optuna keeps of such a trial: what an image takes by its network in ms, and the budget that this is above."""

MOST_SLOW = 3
"""So many times a study's trials may be too slow beside those that it was given."""


def trials_due(trials: int, too_slow: int) -> int:
    """Return how many trials a study hands out: the too slow do not count, up to `MOST_SLOW` times as many."""
    return trials + min(too_slow, MOST_SLOW * trials)


def network_of(job: JobConfig) -> tuple[str, ...]:
    """Return what decides how long a job's network takes, and nothing of its training."""
    return job.architecture, str(sorted(job.model.items())), str(sorted(job.tiling.items())), str(job.image_size)


def words_of(trial: FrozenTrial) -> str | None:
    """Return why a trial was not trained; None of any other."""
    return str(TooSlow(*trial.user_attrs[SLOW])) if SLOW in trial.user_attrs else None
