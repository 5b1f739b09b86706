"""What a person launches: searches, training jobs, tracking and comparison. Ray, Optuna and MLflow live only here.

For notebooks and programs (docs/notebook.md): `Sweep`, `leaderboard` and `Bundle`. Each is imported when it is first
used, so that `import orchestrator` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from orchestrator.usage_reports import switch_off

if TYPE_CHECKING:
    from orchestrator.bundles import Bundle
    from orchestrator.notebook import Sweep, leaderboard

__all__ = ["Bundle", "Sweep", "leaderboard"]

switch_off()  # here, so that no library is imported before it, on a driver or on a worker

_HOME = {"Bundle": "orchestrator.bundles", "Sweep": "orchestrator.notebook", "leaderboard": "orchestrator.notebook"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
