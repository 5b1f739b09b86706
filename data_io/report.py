"""What a check of a dataset found, and how it reads in a terminal."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. An error makes training or measuring wrong or impossible; a warning is worth a look."""

    severity: Literal["error", "warning"]
    path: Path
    message: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.path}: {self.message}"


@dataclass(frozen=True)
class CheckReport:
    """A dataset root as it was found.

    Attributes
    ----------
    root : the root.
    problems : all of them, in the order of the folders.
    summary : one row per category, split and defect type: `category`, `split`, `defect_type`, `images` (count, of any
        state), `masks` (count), `sizes` ("900×900", or "103–632 × 222–403", width first) and `modes` ("RGB", "L",
        "I;16", ... of Pillow, and the bit depth as which more than 8 bits are read); sizes and modes are empty where
        files were not to be opened.
    layout : the name of its layout; None where it is in none.
    bit_depths : by category, what `msad.data_io.wide` found on its good training images, or what was set.
    ratios : by category, the ratio of its good training images, see `msad.data_io.shape.common_ratio`.
    """

    root: Path
    problems: list[Problem]
    summary: pd.DataFrame
    layout: str | None = None
    bit_depths: dict[str, int] = field(default_factory=dict)
    ratios: dict[str, float | None] = field(default_factory=dict)

    @property
    def errors(self) -> list[Problem]:
        """The problems that forbid a search."""
        return [problem for problem in self.problems if problem.severity == "error"]

    @property
    def ok(self) -> bool:
        """Whether there is no error; warnings may remain."""
        return not self.errors

    def to_dict(self) -> dict[str, Any]:
        """`root`, `ok`, `problems`, the rows of `summary`, `bit_depths` and `ratios`, for JSON."""
        problems = [asdict(problem) for problem in self.problems]
        summary = self.summary.to_dict("records")
        return {
            "root": self.root,
            "ok": self.ok,
            "problems": problems,
            "summary": summary,
            "bit_depths": self.bit_depths,
            "ratios": self.ratios,
        }

    def warnings(self, most: int = 8) -> list[str]:
        """The warnings in few lines: those of one text together, `most` of them at most."""
        alike: dict[str, list[Path]] = {}
        for problem in self.problems:
            if problem.severity == "warning":
                alike.setdefault(problem.message, []).append(problem.path)
        lines = [
            f"{paths[0]}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}: {message}"
            for message, paths in alike.items()
        ]
        if len(lines) > most:
            lines[most:] = [f"and {len(lines) - most} more: `msad data check {self.root}` lists them all"]
        return lines


def format_report(report: CheckReport) -> str:
    """The report as plain text: the table of what is there, every problem with its path, one line of verdict."""
    lines = [f"Dataset {report.root}" + (f", layout {report.layout}" if report.layout else "")]
    if not report.summary.empty:
        lines += ["", _table(report.summary)]
    if report.problems:
        lines += ["", *map(str, report.problems)]
    errors = len(report.errors)
    warnings = len(report.problems) - errors
    verdict = "not usable until the errors are mended" if errors else "ready for a search"
    return "\n".join([*lines, "", f"{_count(errors, 'error')}, {_count(warnings, 'warning')}: {verdict}"])


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def _table(summary: pd.DataFrame) -> str:
    rows = [[name.replace("_", " ") for name in summary.columns], *summary.astype(str).to_numpy().tolist()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numeric = [name in ("images", "masks") for name in summary.columns]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in rows
    )
