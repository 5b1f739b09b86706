"""What a person sees: a table on a terminal, a line per trial in a log."""

from __future__ import annotations

import io

import optuna
import pytest
from optuna.distributions import FloatDistribution
from rich.console import Console

from orchestrator.job_config import JobConfig
from orchestrator.live import LiveView
from orchestrator.study import Study


@pytest.fixture
def study():
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    base = JobConfig(category="brick", architecture="baseline", epochs=4)
    space = {"learning_rate": FloatDistribution(1e-4, 1e-2, log=True)}
    return Study(base, space, 3, optuna.storages.InMemoryStorage(), "none")


def play(view: LiveView, study: Study) -> None:
    """One trial that completes, one that fails, one that goes on."""
    with view:
        for outcome in ({"value": 0.8731}, {"failure": "out of memory"}):
            job_id, _ = study.ask()
            view.started(job_id)
            study.tell(job_id, **outcome)
            view.ended(job_id, study, f"failed: {outcome['failure']}" if "failure" in outcome else "0.8731")
        study.ask()
        view.stage(study, "training the winner")
        view.stage(study, "training the winner")


def test_without_a_terminal_every_trial_is_one_plain_line(study):
    text = io.StringIO()
    play(LiveView([study], 1, Console(file=text, width=200)), study)
    lines = text.getvalue().splitlines()
    assert len(lines) == 3 and "\x1b" not in text.getvalue()
    assert lines[0].startswith("brick-baseline-0000: 0.8731 after 0 s (brick/baseline 1/3, about ")
    assert lines[1].startswith("brick-baseline-0001: failed: out of memory after 0 s (brick/baseline 2/3")
    assert lines[2] == "brick/baseline: training the winner"


def test_on_a_terminal_the_final_table_shows_the_counts_and_the_best(study):
    text = io.StringIO()
    console = Console(file=text, width=120, force_terminal=True, color_system=None)
    play(LiveView([study], 1, console), study)
    shown = text.getvalue()
    assert "brick-baseline-0000: " not in shown  # no line per trial beside the table
    final = shown[shown.rindex("study") :]
    row = next(line for line in final.splitlines() if "brick/baseline" in line)
    assert [cell.strip() for cell in row.strip("│ ").split("│")] == [
        "brick/baseline", "2/3", "1", "0", "1", "0.8731", "training the winner",
    ]  # fmt: skip


def test_time_left_is_the_mean_trials_time_over_all_that_run_at_once(study, monkeypatch):
    now = 0.0
    monkeypatch.setattr("orchestrator.live.time.monotonic", lambda: now)
    text = io.StringIO()
    view = LiveView([study], 2, Console(file=text, width=200))
    assert view.seconds_left() == 0
    for seconds in (30, 90):
        job_id, _ = study.ask()
        view.started(job_id)
        study.tell(job_id, value=0.5)
        now += seconds
        view.ended(job_id, study, "0.5")
    assert view.seconds_left() == pytest.approx(1 * 60 / 2)
    assert "0.5 after 1 min 30 s (brick/baseline 2/3, about 30 s left)" in text.getvalue()
