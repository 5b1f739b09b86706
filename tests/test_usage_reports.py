"""Libraries that would report their use: silent in the processes of msad, unless the user wants it otherwise."""

from __future__ import annotations

import json

import pytest

from msad.usage_reports import OFF, switch_off


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    """A process in which nothing is set, and whose Ray has no file of choices."""
    for name in OFF:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_USAGE_STATS_CONFIG_PATH", str(tmp_path / "config.json"))


def reporting():
    """Return what MLflow and Ray themselves make of the variables."""
    from mlflow.environment_variables import MLFLOW_DISABLE_TELEMETRY
    from ray._common.usage.usage_lib import usage_stats_enabled

    return not MLFLOW_DISABLE_TELEMETRY.get(), usage_stats_enabled()


def test_reports_of_mlflow_and_ray_are_on_by_default_and_switched_off():
    assert reporting() == (True, True)
    switch_off()
    assert reporting() == (False, False)


def test_what_the_user_has_set_stays(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    (tmp_path / "config.json").write_text(json.dumps({"usage_stats": True}))  # as `ray enable-usage-stats` leaves it
    switch_off()
    assert reporting() == (True, True)
    (tmp_path / "config.json").write_text("[]")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    switch_off()
    assert reporting() == (True, True)
