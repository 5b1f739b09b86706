"""The leaderboard as text, for people: what a narrow terminal has no room for is in `--csv` and `--json`."""

from __future__ import annotations

import functools
import math
import sys
from io import StringIO
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from msad.leaderboard_columns import KNOWN_DEFECTS, Column, View, shown_in

NO_TERMINAL = 80  # columns, for a file or a pipe


def format_leaderboard(frame: pd.DataFrame, terminal: bool | None = None, width: int | None = None) -> str:
    """Lay the leaderboard out as text.

    Parameters
    ----------
    frame
        What `leaderboard` returned.
    terminal
        True: with colours. None: where standard output is a terminal.
    width
        Columns; None asks the terminal, 80 where there is none.
    """
    text = StringIO()
    coloured = sys.stdout.isatty() if terminal is None else terminal
    if not coloured and width is None:
        width = NO_TERMINAL
    console = Console(file=text, force_terminal=coloured, width=width, emoji=False)
    say = functools.partial(console.print, highlight=False, markup=False)
    wide = console.width >= 105  # what a narrow terminal has no room for stays in the CSV and JSON
    caption = "★ best by validation score; all else is the test split's. (.nn): chance level; of n: its images"
    if frame["image_auroc_mean"].notna().any():
        caption += ". ±: mean and sd over seeds; false alarms and misses are the delivered model's, the first seed's"
    look = {"box": box.SIMPLE_HEAD, "show_edge": False, "pad_edge": False, "padding": (0, int(wide), 0, 0)}
    table = Table(**look, caption=caption, caption_justify="left")
    table.add_column("Architecture", overflow="fold", min_width=14)
    columns = shown_in(View.TERMINAL, *((View.WIDE_TERMINAL,) if wide else ()))
    for heading in "Tri-\nals", *(column.narrow for column in columns):
        table.add_column(heading, justify="right", no_wrap=True)
    for category, rows in frame.groupby("category"):
        shared = [f"[dim]{cell}[/]" for cell in _category_cells(rows, columns)]
        table.add_row(f"[bold cyan]{escape(category)}[/]", "", *shared)
        for row in rows.to_dict("records"):
            table.add_row(*_cells(row, columns), style="bold" if row["best"] else None)
    console.print(table)
    say("")
    for words in filter(None, (_promises(frame), _known(frame))):
        say(words, "", sep="\n")
    reports = [line for row in frame.to_dict("records") if (line := _selection_line(row))]
    if reports:
        say("How well validation chose (image AUROC on test, computed after the choice):")
        say(*reports, "", sep="\n")
    for row in frame[frame["status"] == "complete"].to_dict("records"):
        say(f"{_name(row)}: msad pull {row['run_id']} --to DIR", soft_wrap=True)
    return text.getvalue().rstrip()


def _name(row: dict[str, Any]) -> str:
    return f"{row['category']} / {row['architecture']}{' ★' if row['best'] else ''}"


def _category_cells(rows: pd.DataFrame, columns: list[Column]) -> list[str]:
    """What the studies of a category share: chance levels and numbers of images, empty where none is known yet."""
    cells = []
    for column in columns:
        level = rows[column.chance or column.of].max() if column.chance or column.of else math.nan
        known = f"of {level:.0f}" if column.of else f"({level:.2f})".replace("(0.", "(.")
        cells.append("" if math.isnan(level) else known)
    return cells


def _promises(frame: pd.DataFrame) -> str:
    """Say of each category's best how many false alarms its held-out images can rule out; empty if all is kept."""
    broken = frame[frame["best"] & (frame["false_alarms_expected"] > frame["false_alarms_target"])]
    if broken.empty:
        return ""
    rates = (f"{row.category} {row.false_alarms_expected:.1%}" for row in broken.itertuples())
    return (
        f"False alarms: {broken['false_alarms_target'].max():.3g} of the good images was aimed at, but so few held-out "
        f"ones only promise, on average: {', '.join(rates)}"
    )


def _known(frame: pd.DataFrame) -> str:
    """Say of each category how many known defects had a say, and what they counted; empty where there are none."""
    lines = []
    for category, rows in frame[frame["known_defects_count"] > 0].groupby("category"):
        count, share, taught = rows[[f"known_defects_{name}" for name in KNOWN_DEFECTS]].max()
        trained = f" ({taught:.0f} more were trained on)" if taught else ""
        lines.append(f"{category} {count:.0f}, {share:.0%} of the validation score{trained}")
    return f"Known defects helped to choose: {'; '.join(lines)}" if lines else ""


def _cells(row: dict[str, Any], columns: list[Column]) -> list[str]:
    name = row["architecture"] + (" ★" if row["best"] else "")
    if row["status"] != "complete":
        name += f" ({row['status']})"
    if not math.isnan(row["image_auroc_mean"]):
        name += f"\n  {row['final_seeds']:.0f} seeds"
    return [
        name,
        str(row["trials"] or "-"),
        *(_over_seeds(row, column) if column.over_seeds else column.text(row[column.name]) for column in columns),
    ]


def _over_seeds(row: dict[str, Any], column: Column) -> str:
    """A test figure; the mean with its standard deviation below where there are several seeds."""
    mean, sd = (row.get(f"{column.name}_{part}", math.nan) for part in ("mean", "sd"))
    several = f"{column.text(mean)}\n±{column.text(sd)}".replace("±0", "±")
    return column.text(row[column.name]) if math.isnan(mean) else several


def _selection_line(row: dict[str, Any]) -> str | None:
    if math.isnan(row["selection_trials"]):
        return None
    return (
        f"{_name(row)}: Spearman ρ {_figure(row['selection_spearman'], 2)} over {row['selection_trials']:.0f} trials, "
        f"gap to the best trial on test {_figure(row['selection_gap'])}, "
        f"a random choice {_figure(row['selection_random'])}"
    )


def _figure(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
