"""What a study searched and found, as plain values: `search.json` beside its winner.

Pictures and the report page are drawn from it, so that MLflow alone is enough to make them again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import TrialState

from msad.search.study import FAILURE, Study, default_parameters, state_of

FEWEST_FOR_IMPORTANCE = 4


def describe_search(
    study: Study, tests: Mapping[str, Mapping[str, float]], kept: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return a study's ranges, trials and parameter importance as JSON has them.

    Parameters
    ----------
    study
        The study, finished or not.
    tests
        Test figures by job ID, of the trials that `--report-trials` has measured. They are shown and choose nothing.
    kept
        An earlier record of the study. Where its trials ended as they do here its importance is taken over: after a
        thousand trials that is ten seconds of computing.

    Returns
    -------
    dict
        `study` (its key), `objective`, `chosen` (the number of the trial of the highest validation value, or None),
        `space` (per slash path `kind` float, int or categorical, with `low`, `high`, `log` or `choices`), `defaults`
        (the architecture's own values, where they lie within the space), `importance` (see `importance`) and `trials`,
        each with `number`, `job_id`, `state`, `value` (of a pruned trial its last report; None where there is none),
        `params`, `failure` and `test`.
    """
    best = study.best()
    record = {
        "study": study.key,
        "objective": study.base.objective,
        "chosen": best.number if best else None,
        "space": {path: _range(distribution) for path, distribution in study.space.items()},
        "defaults": default_parameters(study.base, study.space),
        "importance": None,
        "trials": [
            {
                "number": trial.number,
                "job_id": (job_id := trial.user_attrs["job_id"]),
                "state": state_of(trial),
                "value": trial.value if trial.state == TrialState.COMPLETE else _last(trial.intermediate_values),
                "params": trial.params,
                "failure": trial.user_attrs.get(FAILURE),
                "test": {name: _number(value) for name, value in tests[job_id].items()} if job_id in tests else None,
            }
            for trial in study.frozen_trials()
        ],
    }
    record = json.loads(json.dumps(record))  # tuples become lists, so that what is read back compares equal
    alike = kept and kept["space"] == record["space"] and _ends(kept) == _ends(record)
    return record | {"importance": kept["importance"] if alike else importance(study)}


def _ends(record: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    return [(trial["state"], trial["value"], trial["params"]) for trial in record["trials"]]


def importance(study: Study) -> dict[str, Any]:
    """Return `evaluator`, `trials` and `shares` by slash path, or a `reason` why there is nothing to say."""
    complete = study.counts().complete
    known = {"evaluator": "fANOVA", "trials": complete, "shares": {}, "reason": None}
    if len(study.space) < 2:
        alone = "one parameter was searched: it has nothing to be compared with"
        return known | {"reason": alone if study.space else "no parameter was searched"}
    if complete < FEWEST_FOR_IMPORTANCE:
        few = f"{complete} complete trial{'' if complete == 1 else 's'}"
        return known | {"reason": f"{few}: importance needs at least {FEWEST_FOR_IMPORTANCE}"}
    try:
        return known | {"shares": study.importances()}
    except (RuntimeError, ValueError):  # Optuna's answer to values, or to parameters, that do not differ
        return known | {"reason": "all complete trials are worth the same, or have the same parameters"}


def _range(distribution: BaseDistribution) -> dict[str, Any]:
    if isinstance(distribution, CategoricalDistribution):
        return {"kind": "categorical", "choices": list(distribution.choices)}
    kind = "int" if isinstance(distribution, IntDistribution) else "float"
    return {"kind": kind, "low": distribution.low, "high": distribution.high, "log": distribution.log}


def _last(values: Mapping[int, float]) -> float | None:
    return _number(values[max(values)]) if values else None


def _number(value: float | None) -> float | None:
    return value if value == value else None  # JSON has no NaN


def plain_range(distribution: BaseDistribution) -> dict[str, Any]:
    """Return a range as a person writes it: `choices`, or `low` and `high`, with `step` and `log` where they matter."""
    if isinstance(distribution, CategoricalDistribution):
        return {"choices": list(distribution.choices)}
    span = {"low": distribution.low, "high": distribution.high}
    if distribution.step not in (None, 1):
        span["step"] = distribution.step
    if distribution.log:
        span["log"] = True
    return span
