"""How far MLflow is behind a sweep with many trials at once, and what it would cost the trials to write it themselves.

For each store: `--trials` simulated trials report an epoch every `--interval` seconds, once through the tracker (one
thread of the sweep's process writes everything, `orchestrator/tracking/tracker.py`), and once each from a thread of
its own, which is what a trial that logs by itself does. The lag is the time from an epoch's end until MLflow has it;
for a trial that writes itself it is the time that its training stands still. Then all trials report everything at once.

    python benchmarks/tracking.py                                   a SQLite file
    python benchmarks/tracking.py sqlite:///new.db http://127.0.0.1:5000 http://127.0.0.1:5001

docs/tracking.md says how to start a server on SQLite or PostgreSQL.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from msad.addresses import public
from msad.tracking.run_record import RunRecord
from msad.tracking.store import connect, open_experiment
from msad.tracking.tracker import Tracker
from msad.workspace import JobDirectory

METRICS = ("train_loss", "train_l1", "train_ssim", "learning_rate", "epoch_seconds")
METRICS += ("validation_score", "validation_image_auroc", "validation_pixel_ap")
PARAMS = {f"parameter_{number}": number for number in range(25)}  # as many as a job of `multiscale` has


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", nargs="*", help="tracking addresses. [default: a new SQLite file]")
    parser.add_argument("--trials", type=int, default=32, help="trials at once")
    parser.add_argument("--epochs", type=int, default=10, help="reports of each")
    parser.add_argument("--interval", type=float, default=2.0, help="seconds between the reports of a trial")
    arguments = parser.parse_args()
    size = (arguments.trials, arguments.epochs)
    print(f"{size[0]} trials of {size[1]} epochs, {len(METRICS)} metrics each; paced: a report of each trial every")
    print(f"{arguments.interval:g} s, which is {size[0] / arguments.interval:.0f} a second in all\n")
    print(
        f"{'store':38} {'who writes':22} {'reports/s':>9} {'median':>8} {'p95':>8} {'worst lag, s':>13} {'errors':>7}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for store in arguments.stores or [f"sqlite:///{folder}/mlflow.db"]:
            for who, measure, interval in (
                ("the sweep", _through_tracker, arguments.interval),
                ("each trial", _by_themselves, arguments.interval),
                ("the sweep, at once", _through_tracker, 0.0),
                ("each trial, at once", _by_themselves, 0.0),
            ):
                seconds, lags, errors = measure(store, Path(folder) / uuid.uuid4().hex, *size, interval)
                median, p95 = np.percentile(lags, [50, 95])
                shown = f"{len(lags) / seconds:9.1f} {median:8.2f} {p95:8.2f} {max(lags):13.2f} {len(errors):7d}"
                print(f"{public(store)[-38:]:38} {who:22} {shown}", flush=True)
                for error in sorted(set(errors))[:3]:
                    print(f"    {error[:110]}")


def _through_tracker(
    store: str, folder: Path, trials: int, epochs: int, interval: float
) -> tuple[float, list[float], list[str]]:
    """Return how long all took, the lag of each report, and the errors that the tracker told of."""
    client, experiment = _experiment(store, folder.name)
    ended: dict[tuple[str, int], float] = {}
    lags, errors = [], []

    def log_batch(run_id: str, metrics: Any = (), **more: Any) -> None:
        plain_log_batch(run_id, metrics=metrics, **more)
        now = time.perf_counter()
        record = next(name for name in records if tracker.run_id(name) == run_id)
        lags.extend(now - ended[record, step] for step in {metric.step for metric in metrics})

    plain_log_batch, client.log_batch = client.log_batch, log_batch
    tracker = Tracker(client, experiment, errors.append, lambda *_: None)
    records = {
        f"trial-{number:04d}": RunRecord(
            record_id=f"trial-{number:04d}",
            kind="trial",
            title=f"trial {number:04d}",
            status="running",
            directory=JobDirectory(folder / f"trial-{number:04d}"),
            params=PARAMS,
        )
        for number in range(trials)
    }
    for record in records.values():
        record.directory.path.mkdir(parents=True)
        tracker.put(record)
    tracker.flush(600)  # the runs exist before the clock starts, as they do for trials that write themselves

    def report(name: str, epoch: int) -> None:
        records[name].directory.append_progress(_figures(epoch))
        ended[name, epoch] = time.perf_counter()
        tracker.touch(name)

    begun = time.perf_counter()
    _paced(list(records), epochs, interval, report)
    tracker.close(600)
    return time.perf_counter() - begun, lags, errors


def _by_themselves(
    store: str, folder: Path, trials: int, epochs: int, interval: float
) -> tuple[float, list[float], list[str]]:
    from mlflow.entities import Metric, Param

    client, experiment = _experiment(store, folder.name)
    runs = [client.create_run(experiment, tags={"msad.trial_id": str(number)}).info.run_id for number in range(trials)]
    for run in runs:
        client.log_batch(run, params=[Param(name, str(value)) for name, value in PARAMS.items()])
    lags, errors = [], []

    def report(run: str, epoch: int) -> None:
        started = time.perf_counter()
        now = int(time.time() * 1000)
        try:
            client.log_batch(run, [Metric(name, value, now, epoch) for name, value in _figures(epoch).items()])
        except Exception as error:
            errors.append(str(error).splitlines()[0])
        lags.append(time.perf_counter() - started)

    begun = time.perf_counter()
    _paced(runs, epochs, interval, report)
    return time.perf_counter() - begun, lags, errors


def _paced(names: list[str], epochs: int, interval: float, report: Callable[[str, int], None]) -> None:
    """Call `report(name, epoch)` from a thread for each name, so many seconds apart, the threads spread over these."""
    begun, gate = time.perf_counter(), threading.Barrier(len(names))

    def trial(place: int) -> None:
        gate.wait()
        for epoch in range(1, epochs + 1):
            due = begun + interval * (epoch - 1 + place / len(names))
            time.sleep(max(0.0, due - time.perf_counter()))
            report(names[place], epoch)

    with ThreadPoolExecutor(len(names)) as threads:
        list(threads.map(trial, range(len(names))))


def _experiment(store: str, folder: Path) -> tuple[Any, str]:
    client = connect(store, create=True)
    return client, open_experiment(client, f"benchmark-{folder.name}", store, folder.name)


def _figures(epoch: int) -> dict[str, float]:
    return {"epoch": epoch, **dict.fromkeys(METRICS, 1 / epoch)}


if __name__ == "__main__":
    main()
