"""Where things are in the MLflow UI: addresses of pages for descriptions and terminals, and a sweep's saved view.

MLflow 3.17 opens an experiment on its pages for language models unless the address says otherwise, and shows none of a
run's parameters and metrics until a reader picks columns. It keeps a *saved view* (columns, order, filter) as a tag of
the experiment: a name, a time and the state of the table as JSON, everything left out being the default. A version
that does not know it shows its ordinary table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from urllib.parse import quote

from msad.leaderboard_columns import View, column, shown_in

SWEEP_ID = "sweep"  # the record of the sweep's own run
VIEW = "leaderboard"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"  # what the UI lists in the menu "Views"
PARAMS = {"category": 70, "architecture": 115}  # widths in pixels
OWN_COLUMNS = {"attributes.`Run Name`": 184, "runDateAndNestInfo": 128}  # the table's own, always shown


def saved_view() -> str:
    """Return the value of `VIEW_TAG`: the studies by falling validation score, their test figures beside it.

    Category and architecture are parameters here, not tags, because the table sorts by parameters and metrics alone.
    """
    shown = {f"params.`{name}`": width for name, width in PARAMS.items()}
    # At these widths the metrics' names are readable.
    metrics = [one.run_metric for one in shown_in(View.UI)]
    shown |= {f"metrics.`{name}`": max(95, 24 + 6 * len(name)) for name in metrics}
    state = {
        "selectedColumns": list(shown),
        "columnOrder": [*OWN_COLUMNS, *shown],
        "columnWidths": OWN_COLUMNS | shown,
        "searchFilter": "tags.`msad.kind` = 'study'",
        "orderByKey": "metrics.`validation_score`",
        "orderByAsc": not column("validation_score").higher_is_better,
    }
    return json.dumps({"name": VIEW.capitalize(), "createdAt": 0, "state": json.dumps(state)})


def leaderboard_page(experiment_id: str) -> str:
    """Return the address of an experiment's leaderboard, relative to the server's."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW}&workflowType=machine_learning"


def model_page(name: str) -> str:
    """Return the address of a registered model, relative to the server's; a space would end a link of Markdown."""
    return f"#/models/{quote(name, safe='')}"


def as_text(words: str) -> str:
    """Return words for Markdown in which a category's name is no table, link or emphasis."""
    return re.sub(r"([\\`*\[\]|<])", r"\\\1", words)


class Pages:
    """Addresses within an experiment, relative to the server's, for the links of descriptions.

    `run_id(record_id)` gives the MLflow run of a record, or None while it has none: a link to it then leads to the
    leaderboard.
    """

    def __init__(self, experiment_id: str, run_id: Callable[[str], str | None]) -> None:
        self._experiment_id, self.run_id = experiment_id, run_id

    @property
    def leaderboard(self) -> str:
        return leaderboard_page(self._experiment_id)

    def run(self, record_id: str, artifact: str | None = None) -> str:
        """Return the page of a record's run, or of one of its artifacts, e.g. `pictures/gallery.png`."""
        if (run_id := self.run_id(record_id)) is None:
            return self.leaderboard
        return f"#/experiments/{self._experiment_id}/runs/{run_id}" + (f"/artifacts/{artifact}" if artifact else "")
