"""Where trials may be stopped early: how well their order in the middle of training agrees with that at its end.

    python benchmarks/rungs.py --root mvtec --categories bottle,screw --architectures feature_pyramid --trials 12

Of each category, architecture and schedule of the learning rate, the defaults and draws from the search space are
trained to the end, all of the same length, and validated nine times. `rho` is Spearman's correlation of a trial's value
after so many ninths of its epochs with the best that it ever reports, `rho_best` that of its best until then. Below,
asynchronous halving is played with these curves in random orders, by the value at a rung and by the best until then:
`lost` is how much the best trial that is left falls short of the best of all, `cost` the share of all epochs that were
trained, and `fewer` what is lost where as many epochs train fewer trials, all of them to the end.
Only validation is looked at. No Ray, no MLflow.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import heading
import numpy as np
import optuna
import pandas as pd
import torch
from scipy.stats import spearmanr

from msad.cluster.workers.job_worker import load_training_data
from msad.data_io.cache import default_cache_dir
from msad.models.kernels import native
from msad.models.registry import architecture
from msad.search.pruning import promoted
from msad.search_spaces import space
from msad.training.job_config import SCHEDULES, JobConfig
from msad.training.loop import fit

EVALUATIONS = 9
RUNGS = ((1, 3), (2, 6), (1,), (2,), (3,), (4,), (5,), (6,))  # in ninths of the epochs
ORDERS = 300  # in which the same trials might have come


def main() -> None:
    """Train, or read what was trained, and print the tables."""
    options = _options()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cache = options.cache or default_cache_dir()
    if device.type == "cpu":
        native.prepare(cache)
    studies, root = {}, _few(options) if options.images else options.root
    for name in options.architectures.split(","):
        for category in options.categories.split(","):
            for schedule in options.schedules.split(","):
                jobs = _jobs(category, name, schedule, options)
                file = options.curves / f"{category}-{name}-{schedule}-{jobs[0].digest()}-{len(jobs)}.json"
                if not file.exists():
                    curves = [_curve(job, root, cache, device) for job in jobs]
                    options.curves.mkdir(parents=True, exist_ok=True)
                    file.write_text(json.dumps(curves))
                studies[category, name, schedule] = np.array(json.loads(file.read_text()))
                print(file.stem, np.round(studies[category, name, schedule][:, -1], 3), flush=True)
    heading.tell(options, device, f"{_agreement(studies)}\n\n{_halving(studies)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="dataset in the MVTec AD layout")
    parser.add_argument("--categories", required=True)
    parser.add_argument("--architectures", default="feature_pyramid,multiscale")
    parser.add_argument("--schedules", default="one_cycle", help=f"of {', '.join(SCHEDULES)}")
    parser.add_argument("--trials", type=int, default=12, help="the defaults, and draws from the search space")
    parser.add_argument("--epochs", type=int, default=18, help="a multiple of nine")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--images", type=int, default=0, help="good images of each category; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--curves", type=Path, default=Path("rungs"), help="folder of what was trained already")
    parser.add_argument("--cache", type=Path, help="of decoded images; default: msad's own")
    parser.add_argument("--output", type=Path, help="write the tables here too")
    return parser.parse_args()


def _few(options: argparse.Namespace) -> Path:
    """Return a dataset of links to the first images of each category."""
    root = options.curves.resolve() / f"first-{options.images}"
    for category in options.categories.split(","):
        good = root / category / "train" / "good"
        good.mkdir(parents=True, exist_ok=True)
        for file in sorted((options.root / category / "train" / "good").iterdir())[: options.images]:
            if not (good / file.name).exists():
                (good / file.name).symlink_to(file.resolve())
    return root


def _jobs(category: str, name: str, schedule: str, options: argparse.Namespace) -> list[JobConfig]:
    settings = {**architecture(name).training_defaults, "epochs": options.epochs, "steps": 0}
    settings |= {"image_size": options.image_size, "seed": options.seed, "schedule": schedule}
    settings["evaluate_every"] = options.epochs // EVALUATIONS
    job = JobConfig(category=category, architecture=name, **settings)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=options.seed))
    draws = [study.ask(space(name)).params for _ in range(options.trials - 1)]
    return [job, *(dataclasses.replace(job.with_parameters(draw), schedule=schedule) for draw in draws)]


def _curve(job: JobConfig, root: Path, cache: Path, device: torch.device) -> list[float]:
    """Return what a job reports, evaluation by evaluation."""
    values: list[float] = []

    def report(metrics: dict[str, float], _state: dict[str, Any]) -> None:
        values.append(metrics[job.objective])

    fit(job, load_training_data(job, root, cache), device=device, report=report, get_checkpoint=lambda: None)
    return values


def _agreement(studies: dict[tuple[str, str, str], np.ndarray]) -> str:
    rows = []
    for (category, name, schedule), curves in studies.items():
        ends, best = curves.max(axis=1), np.maximum.accumulate(curves, axis=1)
        for ninths in range(1, EVALUATIONS):
            row = {"architecture": name, "schedule": schedule, "category": category, "ninths": ninths}
            row["rho"], row["rho_best"] = (spearmanr(of[:, ninths - 1], ends).statistic for of in (curves, best))
            rows.append(row)
    index = ["architecture", "schedule", "category"]
    table = pd.DataFrame(rows).pivot_table(index=index, columns="ninths", values=["rho", "rho_best"], sort=False)
    return table.round(2).to_string()


def _halving(studies: dict[tuple[str, str, str], np.ndarray]) -> str:
    rows = []
    for (category, name, schedule), curves in studies.items():
        generator = np.random.default_rng(0)
        orders = [generator.permutation(len(curves)) for _ in range(ORDERS)]
        ends = curves.max(axis=1)
        fewer = [np.mean([ends.max() - ends[order[:n]].max() for order in orders]) for n in range(1, len(ends) + 1)]
        for rungs in RUNGS:
            words = {"architecture": name, "schedule": schedule}
            words["rungs"] = " and ".join(f"{ninths}/{EVALUATIONS}" for ninths in rungs)
            for judged, values in (("value", curves), ("best", np.maximum.accumulate(curves, axis=1))):
                lost, cost = np.mean([_play(curves[order], values[order], rungs) for order in orders], axis=0)
                figures = {"cost": cost, "fewer": np.interp(cost * len(ends), range(1, len(ends) + 1), fewer)}
                rows.append({**words, "by": judged, **figures, "lost": lost, f"lost {category}": lost})
    index = ["architecture", "schedule", "rungs", "by"]
    return pd.DataFrame(rows).groupby(index, sort=False).mean().round(3).to_string()


def _play(curves: np.ndarray, judged: np.ndarray, rungs: tuple[int, ...]) -> tuple[float, float]:
    """Return what halving loses with trials that come one after another, and the share of epochs that it trains."""
    seen: dict[int, list[float]] = {rung: [] for rung in rungs}
    left, trained = -math.inf, 0
    for curve, values in zip(curves, judged, strict=True):
        stopped = None
        for rung in rungs:
            value = values[rung - 1]
            goes_on = promoted(value, seen[rung])
            seen[rung].append(value)
            if not goes_on:
                stopped = rung
                break
        trained += stopped or EVALUATIONS
        if stopped is None:
            left = max(left, curve.max())
    return float(curves.max() - left), trained / (len(curves) * EVALUATIONS)


if __name__ == "__main__":
    main()
