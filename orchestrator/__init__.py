"""Searches, trains, compares and uses detectors of visual defects: one room below for each thing that it knows.

For notebooks and programs (docs/notebook.md): `Sweep`, `leaderboard`, `load` and `Bundle`. Each is imported when it is
first used, so that `import msad` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from msad.usage_reports import switch_off

if TYPE_CHECKING:
    from msad.bundle.bundles import Bundle
    from msad.terminal.notebook import Sweep, leaderboard
    from msad.tracking.loading import load

__all__ = ["Bundle", "Sweep", "leaderboard", "load"]

switch_off()  # here, so that no library is imported before it, on a driver or on a worker

_HOME = {
    "Bundle": "msad.bundle.bundles",
    "Sweep": "msad.terminal.notebook",
    "leaderboard": "msad.terminal.notebook",
    "load": "msad.tracking.loading",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
