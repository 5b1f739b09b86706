"""What was predicted over time, from the folders of `msad predict`: windows of images, each compared with the held-out.

Images come in the order in which their files were last changed. All windows together tell of a change that is none as
rarely as a single comparison does: Holm's correction goes over everything that is tested in any of them.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from msad.bundle.drift import FEWEST, RATE, Finding, Values, differences, holm
from msad.data_io.image_statistics import STATISTICS
from msad.errors import ConfigError

WINDOW = 50


@dataclass(frozen=True)
class Window:
    """Images in a row: when the first and the last of them were changed, how many, their values, what has changed."""

    first: datetime
    last: datetime
    images: int
    alarms: float
    values: dict[str, list[float]]
    findings: list[Finding]

    @property
    def words(self) -> str:
        return ", ".join(one.words for one in self.findings)


@dataclass(frozen=True)
class History:
    """Predictions of one model over time: `source` names it, `held_out` is what its windows are compared with."""

    source: str
    threshold: float
    rate: float
    held_out: Values
    windows: list[Window]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold, of each window without the values of its images."""
        windows = [
            {
                **{name: getattr(one, name).isoformat() for name in ("first", "last")},
                **{name: getattr(one, name) for name in ("images", "alarms")},
                "findings": [asdict(finding) for finding in one.findings],
            }
            for one in self.windows
        ]
        return {"source": self.source, "threshold": self.threshold, "rate": self.rate, "windows": windows}


def read_history(folders: Sequence[Path], window: int = WINDOW, rate: float = RATE) -> History:
    """Read folders that `msad predict` has written, and compare window by window.

    Parameters
    ----------
    folders
        Of one model and threshold. An image that is in several counts once.
    window
        Images at once, at least `FEWEST`; what is left over at the end joins the last window.
    rate
        Chance that anything is told although nothing has changed, see `msad.bundle.drift`.

    Raises
    ------
    ConfigError
        A folder holds no such predictions, or those of another model or threshold; there are fewer than `FEWEST`
        images, or the window or rate is out of range.
    """
    if window < FEWEST:
        raise ConfigError(f"a window of {window} images; at least {FEWEST} tell of a drift")
    if not 0 < rate < 1:
        raise ConfigError(f"the false-alarm rate is {rate}; it must be between 0 and 1")
    described = [_described(folder) for folder in folders]
    for folder, one in zip(folders, described, strict=True):
        for name in ("model", "threshold"):
            if one[name] != described[0][name]:
                raise ConfigError(
                    f"{folder}: holds predictions of another {name} than {folders[0]} ({one['source']}, threshold "
                    f"{one['threshold']:g}): look at one model at a time"
                )
    rows = {row["path"]: row for folder in folders for row in _rows(folder)}
    ordered = sorted(rows.values(), key=lambda row: (row["changed"], row["path"]))
    if len(ordered) < FEWEST:
        raise ConfigError(f"{len(ordered)} image(s) in all; at least {FEWEST} tell of a drift")
    reference, threshold = described[0]["held_out"], described[0]["threshold"]
    count = max(1, len(ordered) // window)
    ends = [*(window * (place + 1) for place in range(count - 1)), len(ordered)]
    parts = [ordered[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    tested = [differences(reference, threshold, _values(part)) for part in parts]
    flat = [finding for of_window in tested for finding in of_window]
    left = {id(flat[place]) for place in holm([one.p for one in flat], rate)}
    windows = [
        Window(
            first=datetime.fromisoformat(part[0]["changed"]),
            last=datetime.fromisoformat(part[-1]["changed"]),
            images=len(part),
            alarms=sum(row["verdict"] == "anomalous" for row in part) / len(part),
            values=_values(part),
            findings=sorted((one for one in of_window if id(one) in left), key=lambda one: one.p),
        )
        for part, of_window in zip(parts, tested, strict=True)
    ]
    return History(described[0]["source"], threshold, rate, reference, windows)


def _described(folder: Path) -> dict[str, Any]:
    try:
        told = json.loads((folder / "prediction.json").read_text())
        if not (folder / "statistics.csv").is_file():
            raise FileNotFoundError
    except (OSError, ValueError):
        raise ConfigError(
            f"{folder}: no predictions with statistics in it: name a folder that `msad predict --out` has written"
        ) from None
    if "held_out" not in told:
        raise ConfigError(f"{folder}: its run was stopped before its end; the same `msad predict` finishes it")
    if told["held_out"] is None:
        raise ConfigError(f"{folder}: {told['drift']['reason']}: there is nothing to compare with")
    return told


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "statistics.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def _values(rows: Sequence[dict[str, str]]) -> dict[str, list[float]]:
    return {name: [float(row[name]) for row in rows] for name in ("score", *STATISTICS)}
