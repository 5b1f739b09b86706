"""Detection quality: trains families on categories, chooses by validation alone, and only then meets the test split.

    python benchmarks/quality.py --root mvtec --categories bottle --families feature_pyramid
    python benchmarks/quality.py --root mvtec --trials 8 --ablations --output quality.txt
    python benchmarks/quality.py --root mvtec --families feature_memory,feature_pyramid --seeds 3
    python benchmarks/quality.py --root mvtec --families feature_memory,anomalib:Patchcore,anomalib:Stfpm

Of every family the defaults are trained, and `--trials` - 1 configurations drawn from its search space. A row is the
trial with the best validation score. When all are trained, every trial is tested: `rho` is Spearman's correlation of
validation score and test image AUROC over the trials, `gap` how much the best trial on test is ahead of the chosen one,
`random` what a random choice gets on average. `FP` and `missed` count images at the threshold that was set on good
validation images. With several `--seeds` each draws its own validation split and synthetic defects, and a second table
holds means and standard deviations.

A detector of anomalib (`pip install 'msad[peers]'`) gets two rows of one training: scored as ours are, and by its own
image score as its network gives it (anomalib's normalisation, which cuts scores off before they are ranked, is not
used). `PEERS` puts those that allow it on our default backbone. A family whose weights cannot be had is named below the
table, and the others go on; random weights are told beside the name. No Ray, no MLflow: it also runs where only torch,
scikit-learn, scipy, pandas and Pillow are.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import defaults
import heading
import numpy as np
import pandas as pd
import torch
import yaml
from scipy.stats import spearmanr

from msad.bundle.bundles import Bundle
from msad.bundle.evaluation import Evaluation, evaluate
from msad.cluster.workers.job_worker import load_training_data
from msad.data_io.shape import parse_size
from msad.data_io.table import list_categories
from msad.models.errors import ModelError
from msad.models.registry import architecture, architectures
from msad.models.scorer import IMAGE_SCORE, OWN, Scoring
from msad.models.scoring import choose_scoring, default_candidates
from msad.names import identifier
from msad.training.batches import make_batches
from msad.training.cross_fitting import fit_delivered
from msad.training.job_config import JobConfig
from msad.training.loop import fit
from msad.training.parameters import known_paths, unknown_paths
from msad.training.validation import anomaly_maps

# Image AUROC, where others report the same data; sources in the README's table of references.
PUBLISHED = {
    "bottle": {
        "plain autoencoder": 0.459,
        "plain multi-scale U-Net": 0.516,
        "RIAD": 0.999,
        "NSA": 0.977,
        "DRAEM": 0.992,
        "PatchCore": 1.000,
    },
    "magnetic_tile": {"GANomaly": 0.766, "1-NN": 0.800, "DifferNet": 0.977, "PatchCore": 0.979},
}
# On the backbone of ours, and at the strides that their papers take of a ResNet; the weights are those of its package.
# STFPM's paper trains for 100 epochs: half an hour to hours of a CPU's core.
PEERS: dict[str, dict[str, Any]] = {
    "anomalib:Patchcore": {"model/backbone": "tf_efficientnet_lite0", "model/layers": ["blocks.2", "blocks.4"]},
    "anomalib:Stfpm": {
        "model/backbone": "tf_efficientnet_lite0",
        "model/layers": ["blocks.1", "blocks.2", "blocks.4"],
        "epochs": 30,
    },
}
# What each ablation changes in the job, where the family has that part.
RETRAINED: dict[str, dict[str, Any]] = {
    "no corruption": {"corruption/probability": 0.0},
    "no gates (plain skips)": {"model/skip": "concat", "model/first_skip": 0, "model/skip_dropout": 0.0},
    "no augmentation": {"augmentation/kind": "none"},
    "no noise, blur and JPEG": {"augmentation/noise": 0, "augmentation/blur": 0, "augmentation/jpeg_quality": 100},
    "no stride 32": {"model/coarsest_stride": 16},
    "light kept": {"model/light": "kept"},
    "not straightened": {"model/pose": "kept"},
}


@dataclass
class Trial:
    """One trained configuration; `test` is filled when all trials of its study are trained."""

    job: JobConfig
    bundle: Bundle
    validation: float
    seconds: float
    test: Evaluation | None = None


def main() -> None:
    """Run the families on the categories and print the table."""
    options = _options()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(heading.machine(device, options.threads), flush=True)
    rows, missing = [], []
    for category in options.categories or list_categories(options.root):
        for family in options.families:
            for seed in range(options.seed, options.seed + options.seeds):
                try:
                    rows += _study(category, family, seed, options, device)
                except ModelError as error:  # of one family's weights: the others are worth their time
                    missing.append(f"{category}, {family}, seed {seed}: not measured: {error}")
                    print(missing[-1], flush=True)
    if not rows:
        raise SystemExit("nothing was measured")
    parts = [_table(rows), _spread(rows) if options.seeds > 1 else "", _published(rows), "\n".join(missing)]
    heading.tell(options, device, "\n\n".join(part for part in parts if part))


def _study(
    category: str, family: str, seed: int, options: argparse.Namespace, device: torch.device
) -> list[dict[str, Any]]:
    """Train a family's configurations, choose by validation, test all of them; return the rows of the chosen one."""
    trials = [_train(job, options, device) for job in _jobs(category, family, seed, options)]
    for trial in trials:
        trial.test = evaluate(trial.bundle, options.root, category, options.cache)
    best = max(trials, key=lambda trial: trial.validation)
    if options.bundles:
        best.bundle.save(options.bundles / f"{category}-{identifier(family)}-{seed}")
    rows = [_row(best, trials, device)]
    if IMAGE_SCORE in best.bundle.model.map_names:
        rows.append(_own_score(best, options, device))
    print(_table(rows), flush=True)
    return rows + (_ablations(best, options, device) if options.ablations else [])


def _options() -> argparse.Namespace:
    parser = heading.parser(__doc__)
    known = architectures()
    parser.add_argument("--families", type=heading.names, default=known, help=f"default: {','.join(known)}")
    parser.add_argument("--trials", type=int, default=1, help="the defaults, and draws from the search space")
    parser.add_argument("--epochs", type=int, help="default: each family's own")
    parser.add_argument("--image-size", type=parse_size, default=256, help="pixels, or HEIGHTxWIDTH; see msad")
    parser.add_argument("--evaluations", type=int, default=2, help="validations per training")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="PATH=VALUE", help="e.g. model/base_width=16, for families that have it"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1, help="how many, from --seed on")
    parser.add_argument("--ablations", action="store_true")
    parser.add_argument("--bundles", type=Path, help="keep the chosen models here")
    options = parser.parse_args()
    try:
        if unknown := unknown_paths([line.partition("=")[0] for line in options.set], options.families):
            parser.error("; ".join(unknown))
    except ModelError as error:
        parser.error(str(error))
    return options


def _jobs(category: str, family: str, seed: int, options: argparse.Namespace) -> list[JobConfig]:
    job = defaults.job(options.root, category, seed, options.image_size, family)
    if options.epochs:
        job = dataclasses.replace(job, epochs=options.epochs, steps=0)
    given = {path: yaml.safe_load(value) for path, _, value in (line.partition("=") for line in options.set)}
    fixed = {path: value for path, value in given.items() if path in known_paths(family)}
    peer = {path: value for path, value in PEERS.get(family, {}).items() if path != "epochs" or not options.epochs}
    fixed = _sized(family, job.image_size) | peer | fixed
    job = job.with_parameters(fixed)
    job = dataclasses.replace(job, evaluate_every=math.ceil(job.epochs / options.evaluations))
    return [job, *(job.with_parameters({**draw, **fixed}) for draw in _draws(family, options.trials - 1, seed))]


def _sized(family: str, size: int | str) -> dict[str, Any]:
    """Return the parameters of a job on images of a size; some detectors have to be told it too."""
    known = {"image_size": size, "model/image_size": size}
    return {path: value for path, value in known.items() if path in known_paths(family)}


def _draws(family: str, count: int, seed: int) -> list[dict[str, Any]]:
    if not count:
        return []
    import optuna

    from msad.search_spaces import space

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [study.ask(space(family)).params for _ in range(count)]


def _train(job: JobConfig, options: argparse.Namespace, device: torch.device) -> Trial:
    began = time.perf_counter()
    data = load_training_data(job, options.root, options.cache)

    def report(metrics: dict[str, float], _state: dict[str, Any]) -> None:
        where, seconds = (
            f"{job.category} {job.architecture} {metrics['epoch']}/{job.epochs}",
            time.perf_counter() - began,
        )
        loss, validation = metrics.get("train_loss", math.nan), metrics["validation_score"]
        print(f"  {where}: loss {loss:.4f}, validation {validation:.4f}, {seconds:.0f} s", flush=True)

    fitted = fit(job, data, device=device, report=report, get_checkpoint=lambda: None)
    return Trial(job, defaults.bundle(job, fitted), fitted.validation["score"], time.perf_counter() - began)


def _row(best: Trial, trials: list[Trial], device: torch.device, name: str | None = None) -> dict[str, Any]:
    metrics, tested = best.test.metrics, [trial.test.metrics["image_auroc"] for trial in trials]
    several = len(trials) > 2
    scoring = best.bundle.scorer.scoring
    return {
        "category": best.job.category,
        "family": name or best.job.architecture + (", random weights" if _random(best.job) else ""),
        "seed": best.job.seed,
        "size": best.job.image_size,
        "valid.": best.validation,
        "image AUROC": metrics["image_auroc"],
        "PRAUC": metrics["image_prauc"],
        "pixel AUROC": metrics.get("pixel_auroc", math.nan),  # a category may have no masks
        "pixel AP": metrics.get("pixel_prauc", math.nan),
        "AU-PRO": metrics.get("aupro_30", math.nan),
        "FP": f"{metrics['false_positives']:.0f}/{(best.test.scores['label'] == 0).sum()}",
        "missed": f"{metrics['misses']:.0f}/{(best.test.scores['label'] == 1).sum()}",
        "rho": spearmanr([t.validation for t in trials], tested).statistic if several else math.nan,
        "gap": max(tested) - metrics["image_auroc"] if len(trials) > 1 else math.nan,
        "random": float(np.mean(tested)) if len(trials) > 1 else math.nan,
        "epochs": best.job.epochs,
        "seconds": best.seconds,
        "device": device.type,
        "scoring": f"{'+'.join(scoring.map_names)} σ{scoring.smoothing:g} {scoring.reduction} {scoring.calibration}",
    }


def _own_score(best: Trial, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Test a model once more by the image score that it gives itself, unchanged."""
    shown = next(name for name in best.bundle.model.map_names if name != IMAGE_SCORE)
    (trial,) = _rescored_trials(best, [[Scoring({shown: 1.0}, reduction=OWN)]], options, device)
    return _row(trial, [trial], device, f"{best.job.architecture}, own score")


def _ablations(best: Trial, options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    rows, family = [], best.job.architecture
    corrupts = bool(architecture(family).loss_terms)
    known = {path for path in known_paths(family) if corrupts or not path.startswith("corruption/")}
    # The size as it was given: where it is a number, the square that photographs of any shape are squeezed into.
    for name, changes in (RETRAINED | {"square images": _sized(family, options.image_size)}).items():
        changed = best.job.with_parameters(changes)
        if set(changes) <= known and changed != best.job:
            trial = _train(changed, options, device)
            trial.test = evaluate(trial.bundle, options.root, best.job.category, options.cache)
            rows.append(_row(trial, [trial], device, f"  {name}"))
    rescored = _rescored(best.bundle)
    for name, trial in zip(rescored, _rescored_trials(best, rescored.values(), options, device), strict=True):
        rows.append(_row(trial, [trial], device, f"  {name}"))
    for row in rows:
        print(_table([row]), flush=True)
    return rows


def _rescored(bundle: Bundle) -> dict[str, list[Scoring]]:
    """What scoring alone changes, each with the scorings to choose from; the checkpoint stays."""
    scoring, maps = bundle.scorer.scoring, bundle.model.map_names
    other = {f"{name} map only": scoring.restricted([name]) for name in maps if len(maps) > 1}
    if len(scoring.blended) > 2:
        for left_out in scoring.blended:
            other[f"no {left_out} map"] = scoring.restricted(name for name in scoring.blended if name != left_out)
    if scoring.fuses_scores:
        other["what one map sees less of counts too"] = dataclasses.replace(scoring, fusion="scores")
        other["maps blended as they are"] = dataclasses.replace(scoring, blend="deviations")
    other |= {
        "score of the blended map": dataclasses.replace(scoring, fusion="maps", map_weights=None),
        "mean of the map": dataclasses.replace(scoring, reduction="mean"),
        "maximum of the map": dataclasses.replace(scoring, reduction="max"),
        "no smoothing": dataclasses.replace(scoring, smoothing=0.0),
        "no calibration": dataclasses.replace(scoring, calibration="none"),
        "calibration per position": dataclasses.replace(scoring, calibration="position"),
    }
    rows = {name: [changed] for name, changed in other.items() if changed != scoring}
    if bundle.model.fixed_scoring:
        rows["scoring chosen by synthetic defects"] = default_candidates(maps, bundle.job.view_size)
    return rows


def _rescored_trials(
    best: Trial, of_each: Iterable[list[Scoring]], options: argparse.Namespace, device: torch.device
) -> Iterator[Trial]:
    """Choose among each of several lists of scorings as a search does; deliver and test the model with that one."""
    job, model = best.job, best.bundle.model
    data = load_training_data(job, options.root, options.cache)
    batches = make_batches(job, data, model, device)
    parts = (batches.validation, batches.synthetic, batches.changed)
    good, defects, altered = (anomaly_maps(model, part()) for part in parts)
    for scorings in of_each:
        choice = choose_scoring(good, defects, data.synthetic, scorings, changed_maps=altered)
        scorer, cuts, _ = fit_delivered(job, model, batches, data, choice.scorer.scoring)
        changed = {"scorer": scorer, "threshold": cuts.threshold, "pixel_threshold": cuts.pixel_threshold}
        bundle = dataclasses.replace(best.bundle, **changed)
        test = evaluate(bundle, options.root, job.category, options.cache)
        yield dataclasses.replace(best, bundle=bundle, validation=choice.validation.score, test=test)


def _random(job: JobConfig) -> bool:
    """Say whether a detector that others would give pretrained weights has none."""
    return job.model.get("pre_trained") is False


def _table(rows: list[dict[str, Any]]) -> str:
    frame = pd.DataFrame(rows)
    formats: dict[str, Callable[[float], str]] = {
        name: (lambda value: "-" if math.isnan(value) else f"{value:.4f}")
        for name in frame.select_dtypes("float").columns
    }
    formats["seconds"] = "{:.0f}".format
    return frame.to_string(index=False, formatters=formats, na_rep="-")


def _spread(rows: list[dict[str, Any]]) -> str:
    """Say mean and deviation over the seeds of each figure that all of them have."""
    frame = pd.DataFrame(rows)
    figures = [name for name in frame.select_dtypes("float").columns if frame[name].notna().all()]
    grouped = frame.groupby(["category", "family"], sort=False)[figures]
    mean, deviation = grouped.mean(), grouped.std()
    cells = {name: [f"{m:.3f} ± {d:.3f}" for m, d in zip(mean[name], deviation[name], strict=True)] for name in figures}
    return pd.DataFrame(cells, index=mean.index).reset_index().to_string(index=False)


def _published(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"{category}, published image AUROC: " + ", ".join(f"{name} {value:.3f}" for name, value in known.items())
        for category, known in PUBLISHED.items()
        if category in {row["category"] for row in rows}
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
