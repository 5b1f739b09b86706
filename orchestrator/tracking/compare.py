"""Which configuration won: one row per category and architecture of a sweep, read back from MLflow."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import pandas as pd

from msad.addresses import hide_secrets, public
from msad.errors import TrackingError
from msad.leaderboard_columns import FIGURES, column
from msad.models.errors import did_you_mean
from msad.names import search_filter
from msad.tracking.run_record import SEARCH_TAG
from msad.tracking.store import SWEEP_TAG, all_pages, connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

_FIGURES = tuple(one.name for one in FIGURES)
COLUMNS = ("category", "architecture", "best", "status", "trials", *_FIGURES, "run_id", "best_trial_run_id")


def leaderboard(sweep: str | None, tracking_uri: str) -> pd.DataFrame:
    """Read a sweep's studies from the tracking store.

    Parameters
    ----------
    sweep
        The sweep's name; None is the newest.
    tracking_uri
        MLflow's store, e.g. `sqlite:///mlflow.db` or a server's address.

    Returns
    -------
    pandas.DataFrame
        One row per category × architecture (of one network for several products `ARCHITECTURE (joint)`, a row for each)
        with the columns `COLUMNS`, sorted by category, then by falling validation score, whose level of guessing is
        `validation_chance`. `best` marks one study per category, the highest validation score among those that have not
        failed: test figures choose nothing. `false_positives` and `misses` are counts, of `good_images` and
        `defective_images`. With several final seeds `final_seeds` of them have a mean and a sample standard deviation
        (`image_auroc_mean`, `image_auroc_sd`, ...), and the figures without a suffix are the delivered model's, the
        first seed's. `false_alarms_...` is what the model's threshold promises, see
        `msad.models.thresholds.FalseAlarms`. `known_defects_count` defects helped to choose, and counted
        `known_defects_share` of the validation score; `known_defects_taught` others were trained on. `selection_...` is
        `SelectionReport`, where it was asked for. Figures a study does not have are NaN.
        `attrs["deleted"]` lists the studies whose run was deleted in MLflow, which are left out.

    Raises
    ------
    TrackingError
        The store cannot be reached, holds no sweep, or none of that name; or the sweep has no study there.
    """
    from mlflow.exceptions import MlflowException

    tracking_uri = public(tracking_uri)
    client, experiment = open_sweep(sweep, tracking_uri)
    try:
        studies, deleted = runs_of(client, experiment, "study"), _deleted_studies(client, experiment)
        runs = [run for run in runs_of(client, experiment, "trial") if run.data.tags.get("msad.status") != "too_slow"]
        trials = Counter(run.data.tags.get("msad.study") for run in runs)
    except MlflowException as error:
        raise TrackingError(
            f"{tracking_uri}: the tracking store does not answer: {hide_secrets(str(error))}"
        ) from error
    if not studies:
        name = experiment.tags[SWEEP_TAG]
        raise TrackingError(
            f"{tracking_uri}: the runs of all studies of the sweep {name!r} were deleted in MLflow: "
            f"`msad search --resume {name}` brings them back"
            if deleted
            else f"{tracking_uri}: the sweep {name!r} has no study yet; has it just begun?"
        )
    frame = pd.DataFrame([_row(run, trials) for run in studies], columns=list(COLUMNS))
    rising = [True, not column("validation_score").higher_is_better, True]
    frame = frame.sort_values(["category", "validation_score", "architecture"], ascending=rising)
    frame = frame.reset_index(drop=True)
    eligible = frame[frame["validation_score"].notna() & (frame["status"] != "failed")]
    frame["best"] = frame.index.isin(eligible.groupby("category")["validation_score"].idxmax())
    frame.attrs["deleted"] = deleted
    return frame


def open_sweep(sweep: str | None, tracking_uri: str) -> tuple[MlflowClient, Experiment]:
    """Return a client of the store, and the experiment of a sweep, the newest by default; see `leaderboard`."""
    from mlflow.exceptions import MlflowException

    tracking_uri = public(tracking_uri)
    client = connect(tracking_uri)
    try:
        return client, _find_sweep(client, sweep, tracking_uri)
    except MlflowException as error:
        raise TrackingError(
            f"{tracking_uri}: the tracking store does not answer: {hide_secrets(str(error))}"
        ) from error


def _row(run: Run, trials: Counter[str | None]) -> dict[str, Any]:
    tags, metrics = run.data.tags, run.data.metrics
    return {
        "category": tags.get("msad.category"),
        "architecture": tags.get("msad.architecture"),
        "best": False,
        "status": tags.get("msad.status", "running"),
        "trials": trials[tags.get(SEARCH_TAG) or tags.get("msad.study")],
        "run_id": run.info.run_id,
        "best_trial_run_id": tags.get("msad.best_trial"),
    } | {one.name: metrics.get(one.run_metric, math.nan) for one in FIGURES}


def _find_sweep(client: MlflowClient, sweep: str | None, tracking_uri: str) -> Experiment:
    """Return the experiment of a sweep by the sweep's name, or by the one that somebody has given the experiment."""
    from mlflow.entities import ViewType

    found = [one for one in all_pages(client.search_experiments, view_type=ViewType.ALL) if SWEEP_TAG in one.tags]
    found.sort(key=lambda experiment: experiment.creation_time, reverse=True)
    active = [one for one in found if one.lifecycle_stage != "deleted"]
    if sweep is None and active:
        return active[0]
    if not found or sweep is None:
        raise TrackingError(f"{tracking_uri}: holds no sweep yet; launch one with `msad search`")
    named = [one for one in (*active, *found) if sweep in (one.tags[SWEEP_TAG], one.name)]
    if not named:
        names = dict.fromkeys(name for one in active for name in (one.tags[SWEEP_TAG], one.name))
        raise TrackingError(f"{tracking_uri}: no sweep is named {sweep!r}{did_you_mean(sweep, names)}")
    if named[0].lifecycle_stage == "deleted":
        raise TrackingError(
            f"{tracking_uri}: the experiment of the sweep {sweep!r} was deleted in MLflow: restore it with "
            f"`mlflow experiments restore --experiment-id {named[0].experiment_id}`"
        )
    return named[0]


def _deleted_studies(client: MlflowClient, experiment: Experiment) -> list[str]:
    from mlflow.entities import ViewType

    gone = runs_of(client, experiment, "study", run_view_type=ViewType.DELETED_ONLY)
    return sorted(run.data.tags.get("msad.study", run.info.run_name) for run in gone)


def runs_of(client: MlflowClient, experiment: Experiment, kind: str, **which: Any) -> list[Run]:
    """Return the runs of a sweep that are of a kind, see `msad.tracking.run_record.RunRecord`."""
    return all_pages(
        client.search_runs,
        experiment_ids=[experiment.experiment_id],
        filter_string=search_filter(tags__kind=kind),
        **which,
    )
