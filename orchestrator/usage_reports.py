"""Reports that libraries send home about their use: off, in this process and those that it starts, unless asked for.

MLflow's client and UI report their calls, Ray's head node its cluster every hour, and the hub from which anomalib gets
weights which libraries ask it. A factory's network is not to find out by its firewall.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

OFF = {"MLFLOW_DISABLE_TELEMETRY": "true", "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}


def switch_off() -> None:
    """Switch the reports off; what a user has set stays, by these variables or by `ray enable-usage-stats`."""
    for name, value in OFF.items():
        if name != "RAY_USAGE_STATS_ENABLED" or not _chosen_for_ray():
            os.environ.setdefault(name, value)


def _chosen_for_ray() -> bool:
    """Return whether Ray's own file holds a choice, which the variable would override."""
    try:
        path = os.environ.get("RAY_USAGE_STATS_CONFIG_PATH") or Path.home() / ".ray" / "config.json"
        return "usage_stats" in json.loads(Path(path).read_text())
    except (OSError, ValueError, TypeError, RuntimeError):  # none, none that can be read, or no home
        return False
