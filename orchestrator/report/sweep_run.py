"""The sweep's own run in MLflow, found first: its leaderboard as text, its report page and pictures as files."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from msad.leaderboard_columns import Column, View, column, shown_in
from msad.names import registered_name, study_ids
from msad.report.study_runs import StudyRuns, study_title
from msad.search.config import SweepConfig
from msad.search.study import Study
from msad.tracking.compare import leaderboard
from msad.tracking.run_record import Note, RunRecord
from msad.tracking.speed import BUDGET_TAG, speed_table
from msad.tracking.tracker import Tracker
from msad.tracking.ui.pages import SWEEP_ID, Pages, as_text, model_page
from msad.workspace import JobDirectory, Workspace

LONGEST_NOTE = 8000  # characters that MLflow keeps of a run's description
MOST_WINNERS = 20  # in the experiment's, which is a signpost
SPACE = "&ensp;"  # the UI's own tables have no space between columns


class SweepRun:
    """Keeps the run of a sweep: `begin` when it starts or goes on, `publish` when its studies have ended."""

    def __init__(self, config: SweepConfig, workspace: Workspace, tracker: Tracker, studies: list[Study]) -> None:
        self._config, self._tracker = config, tracker
        self._ids = {study.key: study.id for study in studies}  # one that was started anew has another
        self._directory = JobDirectory(workspace.root / "report")
        categories = len({study.base.category for study in studies})
        together = f" and one network for {len(config.joint)} of them" if config.joint else ""
        self._size = (
            f"{counted(categories, 'category', 'categories')} × "
            f"{counted(len(config.architectures), 'architecture', 'architectures')}{together}, "
            + (f"{counted(config.trials, 'trial', 'trials')} each" if config.trials else "one fixed configuration each")
        )

    def begin(self) -> None:
        """Queue the run after those of the studies, so that it is the newest and stands above them."""

        def note(pages: Pages) -> str:
            return f"{self._size}, still running: [leaderboard so far]({pages.leaderboard})."

        self._tracker.put(self._record("running", note, note))

    def publish(self, runs: StudyRuns, patience: float) -> str | None:
        """Mark the best studies, write the report and queue the run; return why that failed, None where it did not.

        Waits until the studies are in MLflow, from which the report is made: at most `patience` seconds while
        deliveries fail. What is missing then is made by the next resume.
        """
        if self._tracker.flush(patience):
            return None  # the sweep's outcome tells of what could not be delivered
        from msad.pictures.heat_table import save_heat_table  # matplotlib takes seconds, and the end has time
        from msad.pictures.speed import save_speed
        from msad.report.page import write_report

        try:
            frame = leaderboard(self._config.name, self._config.tracking_uri)
            runs.mark_best({f"{row.category}/{row.architecture}" for row in frame[frame["best"]].itertuples()})
            save_heat_table(frame, self._directory.path / "pictures" / "heat_table.png")
            speed = speed_table(self._config.name, self._config.tracking_uri)
            save_speed(speed, self._directory.path / "pictures" / "speed.png")
            write_report(self._config.name, self._config.tracking_uri, self._directory.path / "report.html")
        except Exception as error:  # results of hours are there, and a report can be made again
            return str(error) or type(error).__name__
        rows = [row | {"id": self._ids[_key(row)]} for row in frame.to_dict("records")]
        notes = [partial(write, self._size, rows) for write in (sweep_note, experiment_note)]
        self._tracker.put(self._record("complete", *notes))
        return None

    def _record(self, status: str, note: Note, of_experiment: Note) -> RunRecord:
        return RunRecord(
            record_id=SWEEP_ID,
            kind="sweep",
            title="SWEEP leaderboard",
            status=status,
            directory=self._directory,
            note=note,
            experiment_note=of_experiment,
            tags={} if (budget := self._config.latency_budget) is None else {BUDGET_TAG: f"{budget:g}"},
        )


def sweep_note(size: str, rows: list[dict[str, Any]], pages: Pages) -> str:
    """Return a leaderboard as Markdown; where it is too long for MLflow, of each category's best as many as fit.

    `size` says in words what was searched, `rows` are the leaderboard's.
    """
    titles = [one.title for one in shown_in(View.NOTE)]
    head = (
        f"{size}. [Report]({pages.run(SWEEP_ID, 'report.html')}) · "
        f"[heat table]({pages.run(SWEEP_ID, 'pictures/heat_table.png')}) · "
        f"[score against time]({pages.run(SWEEP_ID, 'pictures/speed.png')}) · "
        f"[leaderboard as a table to sort]({pages.leaderboard})\n\n"
        "★ best of its category by validation score (in brackets what guessing gets); all else is the test split's.\n\n"
        f"{_line('Study', *titles)}\n|---|{'---:|' * len(titles)}\n"
    )
    ids = _ids(rows)
    whole = head + "\n".join(_row(row, ids, pages) for row in rows)
    if len(whole) <= LONGEST_NOTE:
        return whole
    text, shown = head, 0
    for line in (_row(row, ids, pages) for row in rows if row["best"]):
        if len(text) + len(line) > LONGEST_NOTE - 150:
            break
        text, shown = f"{text}{line}\n", shown + 1
    return f"{text}\n{len(rows) - shown} more are in the [leaderboard]({pages.leaderboard})."


def experiment_note(size: str, rows: list[dict[str, Any]], pages: Pages) -> str:
    """Return the description of a sweep's experiment: where to look, and the winners; see `sweep_note`."""
    best, ids = [row for row in rows if row["best"]], _ids(rows)
    lines = [
        f"{size}: [leaderboard]({pages.leaderboard}), [report]({pages.run(SWEEP_ID, 'report.html')}), "
        f"[the sweep's run]({pages.run(SWEEP_ID)}).",
        "Best of each category by validation score:",
        "\n".join(f"- {_winner(row, ids, pages)}" for row in best[:MOST_WINNERS]) or "none.",
    ]
    if len(best) > MOST_WINNERS:
        lines.append(f"{len(best) - MOST_WINNERS} more are in the leaderboard.")
    return "\n\n".join(lines)


def _key(row: dict[str, Any]) -> str:
    return f"{row['category']}/{row['architecture']}"


def _ids(rows: list[dict[str, Any]]) -> dict[str, str]:
    return study_ids(_key(row) for row in rows) | {_key(row): row["id"] for row in rows if "id" in row}


def _row(row: dict[str, Any], ids: dict[str, str], pages: Pages) -> str:
    cells = [_cell(row, one) for one in shown_in(View.NOTE)]
    ended = "" if row["status"] == "complete" else f" ({row['status']})"
    return _line(f"{_link(row, ids, pages)}{ended}", *cells)


def _cell(row: dict[str, Any], shown: Column) -> str:
    text = shown.text(row[shown.name])
    if shown.of and text != "-":
        text += f"&nbsp;of&nbsp;{row[shown.of]:.0f}"
    if shown.chance and not shown.of_test and not math.isnan(chance := row[shown.chance]):
        text += f"&nbsp;({chance:.2f})"
    return text


def _line(*cells: str) -> str:
    return f"| {f' | {SPACE}'.join(cells)} |"


def _winner(row: dict[str, Any], ids: dict[str, str], pages: Pages) -> str:
    text = f"{_link(row, ids, pages)}: validation score {column('validation_score').text(row['validation_score'])}"
    if not math.isnan(row["image_auroc"]):
        gallery = pages.run(ids[_key(row)], "pictures/gallery.png")
        figures = (column(name) for name in ("image_auroc", "aupro_30"))
        text += f", test {', '.join(f'{one.heading} {one.text(row[one.name])}' for one in figures)}"
        text += f" · [gallery]({gallery})"
    return f"{text} · [model]({model_page(registered_name(row['category']))})"


def _link(row: dict[str, Any], ids: dict[str, str], pages: Pages) -> str:
    return f"[{as_text(study_title(_key(row), row['best']))}]({pages.run(ids[_key(row)])})"


def counted(number: int, one: str, several: str) -> str:
    """Return a number with its noun, in words for people."""
    return f"{number} {one if number == 1 else several}"
