"""The search for the faulty detector: its words, its study, and the faults of its first trials."""

from __future__ import annotations

from pathlib import Path

import optuna

STUDY = "brick/faulty:Faulty"
SMALL = ["--image-size", "32", "--architectures", "faulty:Faulty", "--categories", "brick"]
SEARCH = ["search", *SMALL, "--pruner", "none"]


def queue(folder: Path, sweep: str, *faults: str) -> None:
    """Put the faults of a sweep's first trials into its study, before it is started."""
    (folder / "sweeps" / sweep).mkdir(parents=True)
    study = optuna.create_study(storage=_storage(folder, sweep), study_name=STUDY, direction="maximize")
    for fault in faults:
        study.enqueue_trial({"model/fault": fault})


def trials(folder: Path, sweep: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(storage=_storage(folder, sweep), study_name=STUDY).trials


def _storage(folder: Path, sweep: str) -> str:
    return f"sqlite:///{folder}/sweeps/{sweep}/optuna.db"
