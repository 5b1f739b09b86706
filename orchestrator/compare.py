"""Which configuration won: one row per category and architecture of a sweep, read back from MLflow."""

from __future__ import annotations

import math
import sys
from collections import Counter
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from orchestrator.errors import TrackingError
from orchestrator.job_config import nearest
from orchestrator.tracking import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

# Leaderboard column -> metric of the study's run. Test figures lose their prefix: the table says which are which.
METRICS = {
    "validation_score": "validation_score",
    "image_auroc": "test_image_auroc",
    "image_prauc": "test_image_prauc",
    "image_prevalence": "test_image_prevalence",
    "pixel_auroc": "test_pixel_auroc",
    "pixel_prauc": "test_pixel_prauc",
    "pixel_prevalence": "test_pixel_prevalence",
    "aupro_30": "test_aupro_30",
    "parameters": "parameters",
    "latency_ms": "test_latency_ms",
}
COLUMNS = ("category", "architecture", "best", "status", "trials", *METRICS, "run_id", "best_trial_run_id")


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
        One row per category × architecture with the columns `COLUMNS`, sorted by category, then by falling
        validation score. `best` marks one study per category, the highest validation score among those that have not
        failed: test figures choose nothing. Figures a study does not have yet are NaN.

    Raises
    ------
    TrackingError
        The store cannot be reached, holds no sweep, or none of that name.
    """
    from mlflow.exceptions import MlflowException

    # MLflow creates a database that is not there; a mistyped path has to be an error instead.
    if tracking_uri.startswith("sqlite:///") and not Path(tracking_uri.removeprefix("sqlite:///")).is_file():
        raise TrackingError(f"{tracking_uri}: no such database; give the tracking URI of the search")
    client = connect(tracking_uri)
    try:
        experiment = _find_sweep(client, sweep, tracking_uri)
        studies = _runs(client, experiment, "study")
        trials = Counter(run.data.tags.get("msad.study") for run in _runs(client, experiment, "trial"))
    except MlflowException as error:
        raise TrackingError(f"{tracking_uri}: the tracking store does not answer: {error}") from error
    frame = pd.DataFrame([_row(run, trials) for run in studies], columns=list(COLUMNS))
    frame = frame.sort_values(["category", "validation_score", "architecture"], ascending=[True, False, True])
    frame = frame.reset_index(drop=True)
    eligible = frame[frame["validation_score"].notna() & (frame["status"] != "failed")]
    frame["best"] = frame.index.isin(eligible.groupby("category")["validation_score"].idxmax())
    return frame


def format_leaderboard(frame: pd.DataFrame, terminal: bool | None = None, width: int | None = None) -> str:
    """Lay the leaderboard out as text.

    Parameters
    ----------
    frame
        What `leaderboard` returned.
    terminal
        True: a coloured table for people, and how to fetch each winner. False: plain aligned columns, a row a line,
        nothing shortened, for files and other programs. None: whichever standard output is.
    width
        Columns of the terminal; None asks the terminal.
    """
    if not (sys.stdout.isatty() if terminal is None else terminal):
        whole = frame.astype({"parameters": "Int64"})
        return whole.to_string(index=False, float_format=lambda value: f"{value:.4g}", na_rep="-")
    from rich import box
    from rich.console import Console
    from rich.table import Table

    text = StringIO()
    console = Console(file=text, force_terminal=True, width=width)
    # What a narrow terminal has no room for stays in the CSV and JSON.
    extras = ("Para-\nmeters", "ms per\nimage") if console.width >= 96 else ()
    caption = "★ best by validation score; the others are the test split's. (.nn): chance level"
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), caption=caption)
    table.add_column("Architecture", overflow="fold", min_width=14)
    for heading in "Tri-\nals", "Valid.\nscore", "image\nAUROC", "image\nPRAUC", "pixel\nAUROC", "pixel\nPRAUC":
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in "AU-\nPRO", *extras:
        table.add_column(heading, justify="right", no_wrap=True)
    category = None
    for row in frame.to_dict("records"):
        if row["category"] != category:
            category = row["category"]
            table.add_row(f"[bold cyan]{category}[/]")
        name = row["architecture"] + (" ★" if row["best"] else "")
        table.add_row(
            name if row["status"] == "complete" else f"{name} ({row['status']})",
            str(row["trials"]),
            _figure(row["validation_score"]),
            _figure(row["image_auroc"]),
            _with_chance(row["image_prauc"], row["image_prevalence"]),
            _figure(row["pixel_auroc"]),
            _with_chance(row["pixel_prauc"], row["pixel_prevalence"]),
            _figure(row["aupro_30"]),
            *(f"{row['parameters'] / 1e6:.2f}M", _figure(row["latency_ms"], 1))[: len(extras)],
            style="bold" if row["best"] else None,
        )
    console.print(table, "")
    for row in frame.to_dict("records"):
        name = f"{row['category']} / {row['architecture']}{' ★' if row['best'] else ''}"
        console.print(f"{name}: msad pull {row['run_id']} --to DIR", soft_wrap=True, highlight=False)
    return text.getvalue().rstrip()


def _figure(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _with_chance(precision: float, prevalence: float) -> str:
    """An average precision with the level a random score reaches, its prevalence, beside it."""
    return "-" if math.isnan(precision) else f"{precision:.3f} ({prevalence:.2f})".replace("(0.", "(.")


def _row(run: Run, trials: Counter[str | None]) -> dict[str, Any]:
    tags, metrics = run.data.tags, run.data.metrics
    return {
        "category": tags.get("msad.category"),
        "architecture": tags.get("msad.architecture"),
        "best": False,
        "status": tags.get("msad.status", "running"),
        "trials": trials[tags.get("msad.study")],
        "run_id": run.info.run_id,
        "best_trial_run_id": tags.get("msad.best_trial"),
    } | {column: metrics.get(metric, math.nan) for column, metric in METRICS.items()}


def _find_sweep(client: MlflowClient, sweep: str | None, tracking_uri: str) -> Experiment:
    sweeps = {
        name: experiment
        for experiment in _all_pages(client.search_experiments)
        if (name := experiment.tags.get("msad.sweep"))
    }
    if not sweeps:
        raise TrackingError(f"{tracking_uri}: holds no sweep yet; launch one with `msad search`")
    if sweep is None:
        return max(sweeps.values(), key=lambda experiment: experiment.creation_time)
    if sweep not in sweeps:
        raise TrackingError(f"{tracking_uri}: no sweep is named {sweep!r}{nearest(sweep, list(sweeps))}")
    return sweeps[sweep]


def _runs(client: MlflowClient, experiment: Experiment, kind: str) -> list[Run]:
    return _all_pages(
        client.search_runs, experiment_ids=[experiment.experiment_id], filter_string=f"tags.`msad.kind` = '{kind}'"
    )


def _all_pages(search: Any, **arguments: Any) -> list[Any]:
    found, token = [], None
    while True:
        page = search(**arguments, page_token=token)
        found += page
        token = page.token
        if not token:
            return found
