"""The package from Python: a sweep as an object whose outcome shows as a table and pictures in Jupyter."""

from __future__ import annotations

import html
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from msad.bundle.jupyter import image_tag
from msad.cluster.connection import left_as_found
from msad.leaderboard_columns import View, shown_in
from msad.names import study_ids
from msad.search.config import SweepConfig, default_name, load, make_config, overlay
from msad.search.sweep_plan import read_plan
from msad.sweep.launch import resolved, resume, start
from msad.sweep.outcome import Outcome
from msad.tracking import compare
from msad.tracking.speed import speed_table
from msad.tracking.store import default_tracking_uri
from msad.workspace import Workspace

if TYPE_CHECKING:
    from msad.bundle.bundles import Bundle

GALLERY_SIZE = (720, 2400)


@dataclass(frozen=True)
class SweepResult:
    """A finished sweep.

    Parameters
    ----------
    outcome
        Which studies have no winner and why, and what MLflow did not get.
    leaderboard
        One row per category × architecture, see `msad.tracking.compare.leaderboard`.
    workspace
        The sweep's folder.
    """

    outcome: Outcome
    leaderboard: pd.DataFrame
    workspace: Workspace

    def best(self, category: str | None = None, architecture: str | None = None) -> Bundle:
        """Return the model of a study: of a category's best by validation score, unless an architecture is named.

        Raises
        ------
        KeyError
            There is no such study with a winner, or several categories and none is named.
        """
        from msad.bundle.bundles import Bundle

        category, architecture = self._study(category, architecture)
        return Bundle.load(self._final(category, architecture) / "bundle")

    def pictures(self, category: str | None = None, architecture: str | None = None) -> dict[str, Path]:
        """Return the pictures of a study's winner on the test images (gallery, curves, scores), by name."""
        files = (self._final(*self._study(category, architecture)) / "pictures").glob("*.png")
        return {file.stem: file for file in sorted(files)}

    def speed(self, latency_budget: float | None = None) -> pd.DataFrame:
        """Return every trial's validation score and time per image; see `msad.tracking.speed.speed_table`."""
        return speed_table(self.outcome.name, self.outcome.tracking_uri, latency_budget)

    def _study(self, category: str | None, architecture: str | None) -> tuple[str, str]:
        rows = self.leaderboard
        rows = rows[rows["architecture"] == architecture] if architecture else rows[rows["best"].astype(bool)]
        found = list(rows[["category", "architecture"]].itertuples(index=False, name=None))
        fitting = [study for study in found if category in (None, study[0])]
        if len(fitting) != 1:
            known = ", ".join("/".join(study) for study in found) or "none"
            raise KeyError(f"{category or 'no category given'}: one study was to be named; there are {known}")
        return fitting[0]

    def _final(self, category: str, architecture: str) -> Path:
        ids = study_ids(f"{row.category}/{row.architecture}" for row in self.leaderboard.itertuples())
        if plan := read_plan(self.workspace):
            ids |= {key: id for study in plan.studies for key, id in study.rows.items()}
        return self.workspace.final(ids[f"{category}/{architecture}"]).path

    def __repr__(self) -> str:
        stars = self.leaderboard[self.leaderboard["best"].astype(bool)]
        best = [f"{row.category}: {row.architecture} {row.validation_score:.3f}" for row in stars.itertuples()]
        return f"<sweep {self.outcome.name}, best by validation score: {'; '.join(best) or 'none'}>"

    def _repr_html_(self) -> str:
        parts = [_table(self.leaderboard)]
        missing = self.outcome.failed_studies | self.outcome.unmeasured
        parts += [f"<p>{html.escape(f'{key}: {why}')}</p>" for key, why in missing.items()]
        for row in self.leaderboard[self.leaderboard["best"].astype(bool)].itertuples():
            gallery = self._final(row.category, row.architecture) / "pictures" / "gallery.png"
            if gallery.is_file():
                parts.append(f"<p><b>{html.escape(f'{row.category} / {row.architecture}')}</b></p>")
                parts.append(image_tag(gallery, GALLERY_SIZE))
        return "".join(parts)


class Sweep:
    """A search, as `msad search` runs it.

    Parameters
    ----------
    file
        A configuration file, e.g. one of docs/examples; None for none.
    **settings
        Fields of `msad.search.config.SweepConfig`, which come before the file's: `dataset`, `categories` and
        `architectures` (names, or one as text), `joint`, `trials`, `parameters`, `resources`, ...

    Raises
    ------
    ConfigError
        All settings that are unknown or out of range, in one message.
    """

    def __init__(self, file: str | Path | None = None, **settings: Any) -> None:
        for name in ("categories", "joint", "architectures"):
            if isinstance(settings.get(name), str):
                settings[name] = (settings[name],)
        values = {"name": default_name(), **(load(Path(file)) if file else {})}
        self.config: SweepConfig = resolved(make_config(overlay(values, settings)))

    def run(self) -> SweepResult:
        """Search, train the winners and test them; a line is printed whenever a trial ends.

        A sweep of this name and configuration that was interrupted is finished; one that is finished is read again. So
        the cell of a notebook may be run twice. The kernel's stop button interrupts it.

        Raises
        ------
        ConfigError
            A sweep of this name has another configuration, or a setting does not suit the data.
        msad.data_io.errors.DataError, TrackingError, ResourceError, Interrupted
            As `msad.sweep.launch.start`.
        """
        config, workspace = self.config, Workspace(self.config.storage / self.config.name)
        known = workspace.config.exists() and make_config(load(workspace.config)) == config
        with left_as_found():  # or a notebook that is left open would keep the machine's memory
            outcome = resume(config.name, config.storage) if known else start(config)
        return SweepResult(outcome, compare.leaderboard(outcome.name, outcome.tracking_uri), workspace)

    def __repr__(self) -> str:
        given = {name: getattr(self.config, name) for name in sorted(self.config.model_fields_set)}
        return f"Sweep({', '.join(f'{name}={value!r}' for name, value in given.items())})"


def leaderboard(sweep: str | Sweep | SweepResult | None = None, tracking_uri: str | None = None) -> pd.DataFrame:
    """Read a sweep's studies from the tracking store, one row each; see `msad.tracking.compare.leaderboard`.

    Parameters
    ----------
    sweep
        Its name or itself; None is the newest.
    tracking_uri
        MLflow's store; None is the sweep's own, for a name $MLFLOW_TRACKING_URI, else `mlflow.db` in the working
        directory.
    """
    if isinstance(sweep, Sweep):
        sweep, tracking_uri = sweep.config.name, tracking_uri or sweep.config.tracking_uri
    elif isinstance(sweep, SweepResult):
        sweep, tracking_uri = sweep.outcome.name, tracking_uri or sweep.outcome.tracking_uri
    return compare.leaderboard(sweep, tracking_uri or default_tracking_uri())


def _table(frame: pd.DataFrame) -> str:
    """What the table of a result shows; the rest is in `leaderboard`."""
    columns = shown_in(View.NOTEBOOK)
    headings = {column.name: column.heading for column in columns}
    shown = frame[["category", "architecture", "trials", *headings]].rename(columns=headings)
    shown["architecture"] += [" ★" if best else "" for best in frame["best"]]
    figures = {column.heading: partial(column.text, unknown="–") for column in columns}
    note = "★ best by validation score; all else is the test split's."
    return shown.to_html(index=False, border=0, na_rep="–", formatters=figures) + f"<p><small>{note}</small></p>"
