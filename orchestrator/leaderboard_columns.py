"""The figures of a leaderboard, in one table: what each is called, how it is written, and which views show it.

A view asks `shown_in` whenever it is made; what is no figure (category, architecture, trials, status) it has itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


class View(Enum):
    """Where a leaderboard is shown."""

    TERMINAL = auto()  # `msad compare`; of 80 columns
    WIDE_TERMINAL = auto()  # what it has besides where there is room
    NOTEBOOK = auto()
    PAGE = auto()  # the report page
    HEAT_TABLE = auto()
    NOTE = auto()  # the description of the sweep's run in MLflow
    UI = auto()  # MLflow's own table of runs


@dataclass(frozen=True, kw_only=True)
class Column:
    """A figure of a study.

    Parameters
    ----------
    name
        The column of the leaderboard as a table, in CSV and JSON too.
    metric
        Of the study's run in MLflow; empty where it has the column's name.
    title, narrow
        Headings: for a page, and for a column of six characters. Empty for a figure that no view has a column for.
    digits, unit
        After the point, and what is written behind it; `M` stands for millions.
    higher_is_better
        None where neither is.
    over_seeds
        Whether several final seeds have a mean and a standard deviation of it: `NAME_mean` and `NAME_sd`.
    chance, of
        The columns with what guessing gets, and with how many images a number of images is of.
    """

    name: str
    metric: str = ""
    title: str = ""
    narrow: str = ""
    digits: int = 3
    unit: str = ""
    higher_is_better: bool | None = None
    over_seeds: bool = False
    chance: str | None = None
    of: str | None = None
    views: frozenset[View] = frozenset()

    @property
    def run_metric(self) -> str:
        return self.metric or self.name

    @property
    def of_test(self) -> bool:
        """Whether it is measured on the test split, and so chooses nothing."""
        return self.run_metric.startswith("test_")

    @property
    def heading(self) -> str:
        """The title within a sentence: `image AUROC`, but `AU-PRO`."""
        return self.title[:1].lower() + self.title[1:] if self.title[1:2].islower() else self.title

    @property
    def lines(self) -> list[str]:
        """The title in lines, for a column that is not wide; a single word in those of a narrow one."""
        return self.title.rsplit(" ", 1) if " " in self.title else self.narrow.split("\n")

    @property
    def full_title(self) -> str:
        """The title where nothing else says which split it is of: `Test image AUROC`."""
        return f"Test {self.heading}" if self.of_test else self.title

    def text(self, value: float, unknown: str = "-") -> str:
        """Return a value of the column as text."""
        if value != value:
            return unknown
        return f"{value / 1e6 if self.unit == 'M' else value:.{self.digits}f}{self.unit}"


_WIDE = frozenset({View.WIDE_TERMINAL, View.PAGE})
_TABLES = frozenset({View.TERMINAL, View.NOTEBOOK, View.PAGE})
_MLFLOW = frozenset({View.NOTE, View.UI})
_HEAT = frozenset({View.HEAT_TABLE})

_SHOWN = (
    Column(
        name="validation_score",
        title="Validation score",
        narrow="Valid.\nscore",
        higher_is_better=True,
        chance="validation_chance",
        views=_TABLES | _MLFLOW | _HEAT,
    ),
    Column(name="validation_chance"),
    Column(
        name="image_auroc",
        metric="test_image_auroc",
        title="Image AUROC",
        narrow="image\nAUROC",
        higher_is_better=True,
        over_seeds=True,
        views=_TABLES | _MLFLOW | _HEAT,
    ),
    Column(
        name="image_prauc",
        metric="test_image_prauc",
        title="Image PRAUC",
        narrow="image\nPRAUC",
        higher_is_better=True,
        over_seeds=True,
        chance="image_prevalence",
        views=_TABLES | _MLFLOW,
    ),
    Column(name="image_prevalence", metric="test_image_prevalence"),
    Column(
        name="pixel_auroc",
        metric="test_pixel_auroc",
        title="Pixel AUROC",
        narrow="pixel\nAUROC",
        higher_is_better=True,
        over_seeds=True,
        views=_TABLES,
    ),
    Column(
        name="pixel_prauc",
        metric="test_pixel_prauc",
        title="Pixel PRAUC",
        narrow="pixel\nPRAUC",
        higher_is_better=True,
        chance="pixel_prevalence",
        views=_TABLES,
    ),
    Column(name="pixel_prevalence", metric="test_pixel_prevalence"),
    Column(
        name="aupro_30",
        metric="test_aupro_30",
        title="AU-PRO",
        narrow="AU-\nPRO",
        higher_is_better=True,
        over_seeds=True,
        views=_TABLES | _MLFLOW | _HEAT,
    ),
    Column(
        name="parameters",
        title="Parameters",
        narrow="Para-\nmeters",
        digits=2,
        unit="M",
        higher_is_better=False,
        views=_WIDE,
    ),
    Column(
        name="latency_ms",
        metric="test_latency_ms",
        title="ms per image",
        narrow="ms per\nimage",
        digits=1,
        higher_is_better=False,
        views=_WIDE,
    ),
    Column(
        name="false_positives",
        metric="test_false_positives",
        title="False alarms",
        narrow="False\nalarms",
        digits=0,
        higher_is_better=False,
        of="good_images",
        views=_TABLES | _MLFLOW,
    ),
    Column(name="good_images", metric="test_good_images", digits=0),
    Column(
        name="misses",
        metric="test_misses",
        title="Missed",
        narrow="Missed",
        digits=0,
        higher_is_better=False,
        of="defective_images",
        views=_TABLES | _MLFLOW,
    ),
    Column(name="defective_images", metric="test_defective_images", digits=0),
)
SEED_FIGURES = tuple(one.name for one in _SHOWN if one.over_seeds)
_PROMISES = ("target", "held_out", "smallest", "expected", "at_most")  # of `msad.models.thresholds.FalseAlarms`
KNOWN_DEFECTS = ("count", "share", "taught")
"""Of known defects: how many helped to choose, what they counted, and how many others were trained on."""

_SELECTION = ("trials", "spearman", "gap", "random")  # of `msad.search.selection.SelectionReport`

FIGURES = (
    *_SHOWN,
    *(Column(name=f"false_alarms_{part}") for part in _PROMISES),
    *(Column(name=f"known_defects_{part}") for part in KNOWN_DEFECTS),
    Column(name="final_seeds", digits=0),
    *(Column(name=f"{name}_{part}", metric=f"test_{name}_{part}") for name in SEED_FIGURES for part in ("mean", "sd")),
    *(Column(name=f"selection_{part}") for part in _SELECTION),
)
"""All of them, in the order of the leaderboard as a table. Test figures lose their prefix: the table says which are."""


def column(name: str) -> Column:
    """Return a column by its name; KeyError where there is none."""
    return {one.name: one for one in FIGURES}[name]


def shown_in(*views: View) -> list[Column]:
    """Return the columns of one view after the other, each in the table's order."""
    return [one for view in views for one in FIGURES if view in one.views]
