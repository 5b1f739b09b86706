"""What a report shows of a sweep, read back from MLflow alone."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from msad.addresses import hide_secrets, public
from msad.errors import TrackingError
from msad.tracking.artifacts import artifacts
from msad.tracking.compare import leaderboard, open_sweep
from msad.tracking.speed import speed_table

if TYPE_CHECKING:
    from mlflow import MlflowClient

ARTIFACTS = ("pictures", "test", "search.json")


@dataclass(frozen=True)
class StudyReport:
    """A study's run: its row of the leaderboard, and what was logged with it.

    `reason` says why it has no result, or no test figures, where it has none. `search` is
    `study_record.describe_search`'s, None where nothing was searched. `pictures` holds the PNG files' bytes by name,
    without suffix. `per_defect_type` and `regions` are those of `Evaluation`, None where the run has none.
    """

    row: dict[str, Any]
    reason: str
    params: dict[str, str]
    metrics: dict[str, float]
    search: dict[str, Any] | None
    pictures: dict[str, bytes] = field(repr=False)
    per_defect_type: pd.DataFrame | None = field(repr=False)
    regions: pd.DataFrame | None = field(repr=False)


@dataclass(frozen=True)
class SweepReport:
    """A sweep's name, when it began (UTC), its leaderboard, its studies in that order, and its `speed_table`."""

    name: str
    began: datetime
    frame: pd.DataFrame
    studies: list[StudyReport]
    speed: pd.DataFrame


def read_sweep(sweep: str | None, tracking_uri: str) -> SweepReport:
    """Read a sweep from its tracking store; see `compare.leaderboard` for the parameters and errors."""
    from mlflow.exceptions import MlflowException

    tracking_uri = public(tracking_uri)
    client, experiment = open_sweep(sweep, tracking_uri)
    name = experiment.tags["msad.sweep"]
    frame = leaderboard(name, tracking_uri)
    try:
        studies = [_study(client, row) for row in frame.to_dict("records")]
    except MlflowException as error:
        raise TrackingError(
            f"{tracking_uri}: the files of the sweep {name!r} cannot be fetched: {hide_secrets(str(error))}"
        ) from error
    began, speed = datetime.fromtimestamp(experiment.creation_time / 1000, UTC), speed_table(name, tracking_uri)
    return SweepReport(name, began, frame, studies, speed)


def _study(client: MlflowClient, row: dict[str, Any]) -> StudyReport:
    run = client.get_run(row["run_id"])
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder)
        there = artifacts(client, run)
        for item in there.list_artifacts(row["run_id"]):
            if item.path in ARTIFACTS:
                there.download_artifacts(row["run_id"], item.path, folder)
        search, per_type, regions = (
            files / name for name in ("search.json", "test/per_defect_type.csv", "test/regions.csv")
        )
        return StudyReport(
            row=row,
            reason=run.data.tags.get("msad.reason", ""),
            params=dict(run.data.params),
            metrics=dict(run.data.metrics),
            search=json.loads(search.read_text()) if search.is_file() else None,
            pictures={path.stem: path.read_bytes() for path in sorted((files / "pictures").glob("*.png"))},
            per_defect_type=_table(per_type).set_index("defect_type") if per_type.is_file() else None,
            regions=_table(regions) if regions.is_file() else None,
        )


def _table(path: Path) -> pd.DataFrame:
    """Read a table of defect types or images; a folder may be named `001` or `NA`."""
    return pd.read_csv(path, dtype={"defect_type": str, "path": str}, keep_default_na=False, na_values=[""])
