"""What a person sees: a table on a terminal, a line per trial in a log."""

from __future__ import annotations

import io
import threading

import optuna
import pytest
from optuna.distributions import FloatDistribution
from rich.console import Console

from msad.report.live import LiveView
from msad.search.study import Study
from msad.training.job_config import JobConfig
from msad.workspace import JobDirectory


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
    monkeypatch.setattr("msad.report.live.time.monotonic", lambda: now)
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


def test_table_is_redrawn_by_its_thread_while_trials_start_and_end(study, monkeypatch, tmp_path):
    broken, drawn = [], threading.Event()
    monkeypatch.setattr(threading, "excepthook", broken.append)
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    view = LiveView([study], 1, console)
    view._live.refresh_per_second = 1000

    class Slow(JobDirectory):
        """A folder that is read while others start and end."""

        def progress(self):
            if threading.current_thread() is not threading.main_thread():
                drawn.set()
            return super().progress()

    with view:
        for number in range(8):
            view.started(f"lasting-{number}", Slow(tmp_path), 4)
        assert drawn.wait(60), "nobody draws the table"
        for number in range(20_000):
            view.started(f"{number}")
            view._running.pop(f"{number}")
        drawn.clear()
        assert drawn.wait(60), "the table is drawn no more"
    assert not broken, broken[0].exc_value


def test_dumb_terminal_gets_lines_as_a_file_does(study, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    text = io.StringIO()
    play(LiveView([study], 1, Console(file=text, width=80, force_terminal=True)), study)
    assert len(text.getvalue().splitlines()) == 3 and "\x1b" not in text.getvalue()


def test_time_left_before_the_first_end_comes_from_the_epochs_of_what_runs(study, monkeypatch, tmp_path):
    now = 0.0
    monkeypatch.setattr("msad.report.live.time.monotonic", lambda: now)
    view, directory = LiveView([study], 1, Console(file=io.StringIO())), JobDirectory(tmp_path)
    job_id, _ = study.ask()
    view.started(job_id, directory, epochs=4)
    assert view.seconds_left() == 0
    now, _ = 10.0, directory.append_progress({"epoch": 1.0})
    assert view.seconds_left() == pytest.approx(3 * 40 - 10)  # three trials of four times ten seconds, ten have passed
    now = 15.0
    assert view.seconds_left() == pytest.approx(3 * 40 - 15)  # it falls while nothing new is known


def test_training_of_the_winner_shows_its_epoch_and_the_time_left(study, monkeypatch, tmp_path):
    now = 0.0
    monkeypatch.setattr("msad.report.live.time.monotonic", lambda: now)
    directory = JobDirectory(tmp_path)
    directory.append_progress({"epoch": 2.0})  # an earlier attempt came so far
    text = io.StringIO()
    console = Console(file=text, width=120, force_terminal=True, color_system=None)
    with LiveView([study], 1, console) as view:
        view.stage(study, "training the winner", directory, epochs=12)
        now, _ = 30.0, directory.append_progress({"epoch": 4.0})
    assert "training the winner, epoch 4/12, 2 min 00 s left" in text.getvalue()


def test_reason_that_several_trials_failed_for_is_told_once(study):
    text = io.StringIO()
    view = LiveView([study], 1, Console(file=text, width=200))
    for reason in ("out of memory", "out of memory", "the loss is nan"):
        job_id, _ = study.ask()
        study.tell(job_id, failure=reason)
        view.ended(job_id, study, f"failed: {reason}")
    assert text.getvalue().count("out of memory") == 1
    assert "brick-baseline-0001: failed as brick-baseline-0000 did after" in text.getvalue()
    assert "brick-baseline-0002: failed: the loss is nan" in text.getvalue()


def test_names_with_brackets_and_colons_are_shown_as_they_are():
    base = JobConfig(category="a [red]b[/] :bolt: [/x]", architecture="baseline", epochs=4)
    study = Study(base, {}, 0, optuna.storages.InMemoryStorage(), "none")
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None, markup=False, emoji=False)
    with LiveView([study], 1, console):
        pass
    row = next(line for line in console.file.getvalue().splitlines() if "baseline" in line)
    assert "a [red]b[/] :bolt: [/x]/baseline" in row and "0/0" not in row


def test_table_says_which_of_several_products_is_at_work():
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    base = JobConfig(category="brick + gear", architecture="baseline", joint=("brick", "gear"))
    whole = Study(base, {}, 0, optuna.storages.InMemoryStorage(), "none")
    text = io.StringIO()
    console = Console(file=text, width=120, force_terminal=True, color_system=None)
    with LiveView([whole], 1, console) as view:
        view.stage(whole.of_product("gear", "gear-baseline.joint"), "training, then testing")
    final = text.getvalue()[text.getvalue().rindex("study") :]
    row = next(line for line in final.splitlines() if "brick + gear/baseline (joint)" in line)
    assert "gear: training, then testing" in row
