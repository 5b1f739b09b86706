"""Products named as people name them, through a real sweep, MLflow, the registry, a report and a prediction."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from msad.errors import ConfigError
from msad.terminal.leaderboard_text import format_leaderboard
from msad.tracking.champion import promote
from msad.tracking.compare import leaderboard
from msad.tracking.model_store import pull

# Every sign that has broken something: quotes, a comma, a colon, percent, a dollar, brackets, a backslash.
ALL = 'Löt\'s "M4,5" rev:B 50% $a_b$ [red] \\ \u2215 \U0001f529'
MORE = [ALL, "-dash", "bolt", "Bolt", "B" * 200]
SMALL = ["--architectures", "baseline", "--image-size", "64", "--epochs", "1", "--trials", "1"]


def quoted(name):
    return '"' + name.replace('"', '""') + '"'


def search(folder, *words):
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-m", "msad", "search", *words, "--json", "new/outcome.json"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)


def dataset(demo, folder, names):
    """A dataset in which one product lies under several names."""
    for name in names:
        (folder / "data").mkdir(exist_ok=True)
        (folder / "data" / name).symlink_to(demo / "brick", target_is_directory=True)
    return folder / "data"


def check_all_of_it(folder, done, names):
    assert done.returncode == 0, done.stderr
    assert "Glyph" not in done.stderr and "Traceback" not in done.stderr
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    outcome = json.loads((folder / "new" / "outcome.json").read_text(encoding="utf-8"))
    assert not outcome["undelivered"] and not outcome["unreported"]
    table = leaderboard("named", uri)
    assert sorted(table["category"]) == sorted(names) and set(table["status"]) == {"complete"}
    text = format_leaderboard(table, terminal=False)
    for name, run_id in zip(table["category"], table["run_id"], strict=True):
        assert f"{name} / baseline ★: msad pull {run_id}" in text
        folder_of = pull(f"{name}@champion", folder / "pulled" / run_id, uri)
        assert json.loads((folder_of / "bundle.json").read_text())["job"]["category"] == name
        with pytest.raises(ConfigError, match="already"):
            promote(run_id, uri)
    return uri, table


@pytest.mark.slow
def test_search_of_a_product_with_every_awkward_sign_in_its_name_delivers_all_of_it(demo, tmp_path):
    data = dataset(demo, tmp_path, [ALL])
    done = search(tmp_path, "--dataset", str(data), "--categories", quoted(ALL), "--name", "named", *SMALL)
    uri, _ = check_all_of_it(tmp_path, done, [ALL])
    from msad.report.page import write_report

    page = write_report("named", uri, tmp_path / "pages" / "report.html").read_text(encoding="utf-8")
    assert "50% $a_b$ [red] \\" in page and "\U0001f529" in page
    jobs = [path.name for path in (tmp_path / "sweeps" / "named" / "jobs").iterdir()]
    assert jobs and all(name.isascii() and ":" not in name for name in jobs)


@pytest.mark.slow
def test_executor_train_takes_any_name_and_names_that_differ_in_case_alone_and_a_resume_adds_nothing(demo, tmp_path):
    data = dataset(demo, tmp_path, MORE)
    words = [word for name in MORE for word in ("--categories", quoted(name))]
    done = search(tmp_path, "--dataset", str(data), *words, "--name", "named", "--executor", "train", *SMALL)
    _, table = check_all_of_it(tmp_path, done, MORE)
    jobs = [path.name for path in Path(tmp_path, "sweeps", "named", "jobs").iterdir()]
    assert len({name.casefold() for name in jobs}) == len(jobs) == 2 * len(MORE)
    again = search(tmp_path, "--resume", "named")
    assert again.returncode == 0, again.stderr
    after = leaderboard("named", f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert list(after["run_id"]) == list(table["run_id"])
    assert len(list(Path(tmp_path, "sweeps", "named", "jobs").iterdir())) == len(jobs)
