"""What the trials of a sweep are worth and how long an image takes by each: validation score against latency.

Both are of the validation images: nothing here has seen the test split.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pandas as pd

from msad.addresses import hide_secrets, public
from msad.errors import TrackingError
from msad.tracking.compare import open_sweep, runs_of
from msad.tracking.run_record import JOINT_TAG

if TYPE_CHECKING:
    from mlflow.entities import Run

BUDGET_TAG = "msad.latency_budget"
"""Of the sweep's run: the ms that an image may take, where it has such a budget."""

COLUMNS = ("category", "architecture", "trial", "validation_score", "latency_ms", "front", "best", "run_id")


def speed_table(sweep: str | None, tracking_uri: str, latency_budget: float | None = None) -> pd.DataFrame:
    """Read the trials of a sweep that have both figures; a study of one fixed configuration is one itself.

    Parameters
    ----------
    sweep
        The sweep's name; None is the newest.
    tracking_uri
        MLflow's store, e.g. `sqlite:///mlflow.db` or a server's address.
    latency_budget
        What an image may take in ms; None: what the sweep was searched with, or any time.

    Returns
    -------
    pandas.DataFrame
        One row per complete trial with the columns `COLUMNS`, by category and falling validation score; of one network
        for several products a row for each, of the winner, the only one whose models MLflow has. `front` marks
        those that none of their category beats (`pareto_front`), `best` the highest validation score of a category
        within the budget, the quicker of equals. `run_id` is what `msad pull` takes. `attrs["latency_budget"]` is the
        budget.

    Raises
    ------
    TrackingError
        The store cannot be reached, or holds no such sweep.
    """
    from mlflow.exceptions import MlflowException

    tracking_uri = public(tracking_uri)
    client, experiment = open_sweep(sweep, tracking_uri)
    try:
        trials, studies = (runs_of(client, experiment, kind) for kind in ("trial", "study"))
        own = runs_of(client, experiment, "sweep") if latency_budget is None else []
    except MlflowException as error:
        raise TrackingError(
            f"{tracking_uri}: the tracking store does not answer: {hide_secrets(str(error))}"
        ) from error
    told = next((run.data.tags[BUDGET_TAG] for run in own if BUDGET_TAG in run.data.tags), None)
    budget = latency_budget if told is None else float(told)
    trials = [run for run in trials if JOINT_TAG not in run.data.tags]
    searched = {run.data.tags.get("msad.study") for run in trials}
    fixed = [run for run in studies if run.data.tags.get("msad.study") not in searched]
    rows = [row for run in (*trials, *fixed) if (row := _row(run)) is not None]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    rising = [True, False, True, True]
    frame = frame.sort_values(["category", "validation_score", "latency_ms", "trial"], ascending=rising)
    frame = frame.reset_index(drop=True)
    for _, group in frame.groupby("category"):
        frame.loc[group.index, "front"] = pareto_front(group)
        within = group[group["latency_ms"] <= (math.inf if budget is None else budget)]
        frame.loc[within.index[:1], "best"] = True
    frame.attrs["latency_budget"] = budget
    return frame


def pareto_front(frame: pd.DataFrame) -> list[bool]:
    """Say of each row whether no other is at least as good in both figures, and better in one."""
    score_N, latency_N = frame["validation_score"].to_numpy(), frame["latency_ms"].to_numpy()
    return [
        not ((score_N >= score) & (latency_N <= latency) & ((score_N > score) | (latency_N < latency))).any()
        for score, latency in zip(score_N, latency_N, strict=True)
    ]


def _row(run: Run) -> dict[str, Any] | None:
    tags, metrics = run.data.tags, run.data.metrics
    figures = {name: metrics.get(name, math.nan) for name in ("validation_score", "latency_ms")}
    if tags.get("msad.status") != "complete" or any(map(math.isnan, figures.values())):
        return None
    trial = tags.get("msad.trial_id", "") if tags.get("msad.kind") == "trial" else ""
    names = {"category": tags.get("msad.category"), "architecture": tags.get("msad.architecture"), "trial": trial}
    return names | figures | {"front": False, "best": False, "run_id": run.info.run_id}
