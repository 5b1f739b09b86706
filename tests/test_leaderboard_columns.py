"""The one table of the leaderboard's figures: every view has its columns from there, and writes them as it says."""

from __future__ import annotations

import math
from datetime import datetime

import pandas as pd
import pytest

from msad import leaderboard_columns
from msad.leaderboard_columns import FIGURES, Column, View, column, shown_in
from msad.pictures import heat_table
from msad.report import page, sweep_run
from msad.terminal import notebook
from msad.terminal.leaderboard_text import format_leaderboard
from msad.tracking.compare import COLUMNS
from msad.tracking.read_sweep import StudyReport, SweepReport
from msad.tracking.ui.pages import Pages, saved_view


@pytest.fixture
def frame():
    """A leaderboard of one finished study, with figures that a table of today does not have."""
    row = {"category": "brick", "architecture": "baseline", "best": True, "status": "complete", "trials": 2}
    row |= {one.name: 0.5 for one in FIGURES} | {"f2": 0.123, "run_id": "0", "best_trial_run_id": "1"}
    return pd.DataFrame([row])


def drawn(frame: pd.DataFrame, monkeypatch) -> str:
    titles = []
    monkeypatch.setattr(
        heat_table, "save_figure", lambda figure, _path: titles.extend(axes.get_title() for axes in figure.axes)
    )
    heat_table.save_heat_table(frame, None)
    return " ".join(titles)


def shown(view: View, frame: pd.DataFrame, monkeypatch) -> str:
    """Return a view as text."""
    rows = frame.to_dict("records")
    if view in (View.TERMINAL, View.WIDE_TERMINAL):
        return format_leaderboard(frame, terminal=False, width=80 if view is View.TERMINAL else 160)
    if view is View.NOTEBOOK:
        return notebook._table(frame)
    if view is View.HEAT_TABLE:
        return drawn(frame, monkeypatch)
    if view is View.NOTE:
        return sweep_run.sweep_note("", rows, Pages("0", lambda _id: None))
    if view is View.UI:
        return saved_view()
    study = StudyReport(rows[0], "", {}, {}, search=None, pictures={}, per_defect_type=None, regions=None)
    text = page.render(SweepReport("first", datetime(2026, 1, 1), frame, [study], speed=pd.DataFrame()))
    return text.partition('id="leaderboard"')[2]


@pytest.mark.parametrize("view", View)
def test_view_shows_the_columns_that_the_table_gives_it_and_no_others(view, frame, monkeypatch):
    new = Column(name="f2", metric="test_f2", title="F2", narrow="F2", views=frozenset({view}))
    monkeypatch.setattr(leaderboard_columns, "FIGURES", (*FIGURES, new))
    wanted = {view, View.WIDE_TERMINAL} if view is View.TERMINAL else {view}
    assert {other for other in View if "f2" in shown(other, frame, monkeypatch).lower()} == wanted


def test_wide_terminal_has_what_the_narrow_one_has_and_more(frame):
    narrow, wide = (format_leaderboard(frame, terminal=False, width=width) for width in (80, 160))
    for one in shown_in(View.TERMINAL, View.WIDE_TERMINAL):
        words = one.narrow.split("\n")
        assert all(word in wide for word in words), one
        assert all(word in narrow for word in words) == (View.TERMINAL in one.views), one


def test_table_has_every_column_of_the_leaderboard_once():
    names = [one.name for one in FIGURES]
    assert len(names) == len(set(names)) and COLUMNS[5:-2] == tuple(names)
    assert all(one.title and one.narrow and one.higher_is_better is not None for one in FIGURES if one.views)
    assert {other for one in FIGURES for other in (one.chance, one.of) if other} <= set(names)


def test_heat_tables_have_figures_alone_of_which_more_is_better():
    assert all(one.higher_is_better for one in shown_in(View.HEAT_TABLE))  # darker is higher, and so better


def test_column_writes_its_values():
    assert [column("aupro_30").text(value) for value in (0.91649, math.nan)] == ["0.916", "-"]
    assert column("parameters").text(1928483) == "1.93M" and column("misses").text(3.0) == "3"
    assert column("latency_ms").text(math.nan, "–") == "–"
    assert column("image_auroc").heading == "image AUROC" and column("aupro_30").heading == "AU-PRO"
    assert column("latency_ms").lines == ["ms per", "image"] and column("parameters").lines == ["Para-", "meters"]
    assert column("aupro_30").full_title == "Test AU-PRO"
    assert column("validation_score").full_title == "Validation score"
