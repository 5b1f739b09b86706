"""A sweep as one page: a file that needs no network, no script and no server, to look at, print and pass on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from msad.leaderboard_columns import Column, View, column, shown_in
from msad.names import JOINT
from msad.pictures import heat_table
from msad.pictures.palette import value_colours
from msad.report.captions import EVALUATION, SEARCH, format_value, pictures, speed_picture
from msad.report.region_table import region_table
from msad.tracking.read_sweep import StudyReport, SweepReport, read_sweep
from msad.workspace import write_atomically

TEMPLATE = "page.html"
PER_TYPE = {  # column of `Evaluation.per_defect_type` -> heading
    "images": "Images",
    "misses": "Missed",
    "recall": "Recall",
    **{name: column(name).title for name in ("image_auroc", "image_prauc", "pixel_auroc", "pixel_prauc", "aupro_30")},
}
COUNTS = ("images", "misses")
STATUS = {"running": "unfinished", "failed": "failed"}


def write_report(sweep: str | None, tracking_uri: str, path: Path) -> Path:
    """Write the report page of a sweep, made from its tracking store alone.

    Parameters
    ----------
    sweep
        The sweep's name; None is the newest.
    tracking_uri
        MLflow's store, e.g. `sqlite:///mlflow.db` or a server's address.
    path
        The HTML file; its folder is made.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    TrackingError
        The store cannot be reached, holds no sweep, or none of that name.
    """
    page = render(read_sweep(sweep, tracking_uri))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page.encode())
    return path


def render(sweep: SweepReport) -> str:
    """Return the page as HTML; every text in it that is not the template's own is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = figure
    names = sorted({study.row["category"] for study in sweep.studies})
    categories = [_category(index, name, sweep) for index, name in enumerate(names)]
    return environment.get_template(TEMPLATE).render(
        name=sweep.name,
        began=sweep.began.strftime("%-d %B %Y, %H:%M UTC"),
        frame=sweep.frame,
        studies=sweep.studies,
        categories=categories,
        architectures=sorted({study.row["architecture"] for study in sweep.studies}),
        trials=sum({_searched(study.row): study.row["trials"] for study in sweep.studies}.values()),
        columns=[one.lines for one in shown_in(View.PAGE)],
        heat_tables=_heat_tables(sweep.frame),
        speed=speed_picture(sweep.speed),
        without_result=[study for study in sweep.studies if study.row["status"] != "complete"],
        reported=[study for study in sweep.studies if not math.isnan(study.row["selection_trials"])],
        status=STATUS,
    )


def _searched(row: dict[str, Any]) -> tuple[str, str]:
    """Return what tells the search of a row from others: those of several products have one of them all."""
    return "" if row["architecture"].endswith(JOINT) else row["category"], row["architecture"]


def figure(value: float | None, digits: int = 3) -> str:
    """Return a number with so many digits, a dash where it is not known."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _category(index: int, name: str, sweep: SweepReport) -> dict[str, Any]:
    studies = [study for study in sweep.studies if study.row["category"] == name]
    winner = next((study for study in studies if study.row["best"]), None)
    tested = next((study.row for study in studies if not math.isnan(study.row["good_images"])), None)
    return {
        "name": name,
        "anchor": f"category-{index}",  # names may hold what an address cannot
        "studies": studies,
        "winner": _details(winner, gallery=True) if winner else None,
        "others": [_details(study, gallery=False) for study in studies if study is not winner],
        "tested": tested,
        "known": next((study.row for study in studies if study.row["known_defects_count"] > 0), None),
        "chance": next((c for study in studies if not math.isnan(c := study.row["validation_chance"])), math.nan),
    }


def _details(study: StudyReport, gallery: bool) -> dict[str, Any]:
    """What a study has to show, ready for the template."""
    row = study.row
    return {
        "row": row,
        "cells": [_board_cell(study, one) for one in shown_in(View.PAGE)],
        "reason": study.reason,
        "interval": _interval(study.metrics, "test_image_auroc"),
        "examples": next(iter(pictures(study, ("examples",))), None) if gallery else None,
        "gallery": next(iter(pictures(study, ("gallery",))), None) if gallery else None,
        "evaluation": pictures(study, EVALUATION),
        "search": pictures(study, SEARCH),
        "parameters": _parameters(study),
        "settings": _settings(study),
        "per_type": _per_type(study.per_defect_type),
        "regions": region_table(study.regions, study.metrics) if gallery else None,
    }


def _board_cell(study: StudyReport, shown: Column) -> list[str]:
    """A figure of the leaderboard, and what stands below it: the spread over seeds, the interval of the first one's."""
    row, interval = study.row, _interval(study.metrics, shown.run_metric)
    several = shown.over_seeds and not math.isnan(row[f"{shown.name}_mean"])
    cell = [shown.text(row[f"{shown.name}_mean"] if several else row[shown.name], "–")]
    if several:
        cell.append(f"± {shown.text(row[f'{shown.name}_sd'])}")
    return [*cell, interval] if interval else cell


def _interval(figures: dict[str, float], name: str) -> str | None:
    ends = [figures.get(f"{name}_{end}", math.nan) for end in ("low", "high")]
    return None if any(map(math.isnan, ends)) else f"{ends[0]:.3f} to {ends[1]:.3f}"


def _parameters(study: StudyReport) -> list[dict[str, Any]]:
    """A row per searched parameter, the most important first: its range, its default, and what won."""
    if study.search is None:
        return []
    search = study.search
    chosen = next((trial["params"] for trial in search["trials"] if trial["number"] == search["chosen"]), {})
    shares = search["importance"]["shares"]
    return [
        {
            "name": name,
            "range": _range(search["space"][name]),
            "default": format_value(search["defaults"][name]) if name in search["defaults"] else "–",
            "chosen": format_value(chosen[name]) if name in chosen else "–",
            "changed": name in chosen and chosen[name] != search["defaults"].get(name),
            "importance": shares.get(name, math.nan),
        }
        for name in sorted(search["space"], key=lambda name: (-shares.get(name, 0), name))
    ]


def _range(values: dict[str, Any]) -> str:
    if values["kind"] == "categorical":
        return ", ".join(format_value(choice) for choice in values["choices"])
    scale = ", logarithmic" if values["log"] else ", whole" if values["kind"] == "int" else ""
    return f"{values['low']:g} to {values['high']:g}{scale}"


def _settings(study: StudyReport) -> list[tuple[str, str]]:
    """What was not searched: every other parameter of the run."""
    searched = study.search["space"] if study.search else {}
    about = ("category", "architecture")
    return [(name, value) for name, value in sorted(study.params.items()) if name not in searched and name not in about]


def _per_type(table: pd.DataFrame | None) -> dict[str, Any] | None:
    """A table of defect types as headings and rows of (figure, interval or None); None where there is none."""
    if table is None or table.empty:
        return None
    columns = [name for name in PER_TYPE if name in table]

    def cell(row: dict[str, float], name: str) -> tuple[str, str | None]:
        return figure(row[name], 0 if name in COUNTS else 3), _interval(row, name)

    rows = zip(table.index, table.to_dict("records"), strict=True)
    return {
        "headings": [PER_TYPE[name] for name in columns],
        "rows": [(kind, [cell(row, name) for name in columns]) for kind, row in rows],
    }


def _heat_tables(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The heat tables as rows of cells with their colours, and the mean over categories."""
    categories, architectures = heat_table.names(frame)
    tables = []
    for shown in shown_in(View.HEAT_TABLE):
        low, high = heat_table.limits(frame, shown.name)
        cells = {
            (row["category"], row["architecture"]): _heat_cell(row, shown, low, high)
            for row in frame.to_dict("records")
        }
        means = heat_table.means(frame, shown.name) if len(categories) > 1 else {}
        tables.append(
            {
                "heading": shown.full_title,
                "rows": [
                    (category, [cells.get((category, name)) for name in architectures]) for category in categories
                ],
                "means": [shown.text(means[name], "–") for name in architectures] if means else [],
            }
        )
    return tables


def _heat_cell(row: dict[str, Any], shown: Column, low: float, high: float) -> dict[str, Any]:
    value = row[shown.name]
    if math.isnan(value):
        return {"text": STATUS.get(row["status"], "–"), "ground": None, "ink": None, "best": False}
    ground, ink = value_colours(value, low, high)
    return {"text": shown.text(value), "ground": ground, "ink": ink, "best": row["best"]}
