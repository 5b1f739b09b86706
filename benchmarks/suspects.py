"""Suspects among the good: how many planted real defects are found, and what training without the suspects wins back.

    python benchmarks/suspects.py --root ROOT --output suspects.txt

Of each product as many real test defects as 5 % of its good training images, drawn by the seed, are put among these and
taken out of the test. `found` is the share of them in the first tenth of the ranking, `told` how many of the planted
and `wrongly` how many of the good images stand out enough to be warned of. Then `feature_memory` with its defaults is
trained on the good images (`clean`), on good and planted ones (`planted`), and on these without the first tenth
(`without`), and measured on what is left of the test; `+-` is the standard deviation over the seeds. No Ray, no MLflow.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import defaults
import heading
import numpy as np
import pandas as pd
import torch

from msad.bundle.evaluation import evaluate
from msad.cluster.workers.job_worker import load_training_data
from msad.data_io.layout import find_layout
from msad.data_io.layouts.sample import Sample
from msad.data_io.table import list_categories
from msad.training.loop import fit
from msad.training.suspects import find_suspects

PLANTED, FIRST = 0.05, 0.1
FIGURES = {"AUROC": "image_auroc", "AU-PRO": "aupro_30", "missed": "misses", "false alarms": "false_positives"}


def main() -> None:
    """Measure every product and print the two tables."""
    options = _options()
    torch.set_num_threads(options.threads)
    print(heading.machine(defaults.CPU, options.threads), flush=True)
    rankings, trainings = [], []
    for category in options.categories or list_categories(options.root):
        for seed in range(options.seeds):
            ranking, rows = _product(category, seed, options)
            rankings.append(ranking)
            trainings += rows
            print(_tables(rankings, trainings), flush=True)
    heading.tell(options, defaults.CPU, _tables(rankings, trainings))


def _options() -> argparse.Namespace:
    parser = heading.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="draws of what is planted, and splits")
    parser.add_argument("--image-size", default=256)
    return parser.parse_args()


def _product(category: str, seed: int, options: argparse.Namespace) -> tuple[dict, list[dict]]:
    layout = find_layout(options.root)
    good, test = layout.train(options.root, category), layout.test(options.root, category)
    defects = [sample for sample in test if sample.label]
    drawn = np.random.default_rng(seed).permutation(len(defects))[: round(PLANTED * len(good))]
    planted = [defects[index].path for index in drawn]
    rest = [sample for sample in test if sample.path not in planted]
    with tempfile.TemporaryDirectory() as folder:
        roots = {name: Path(folder) / name for name in ("clean", "planted", "without")}
        _link(roots["clean"] / category, good, rest)
        _link(roots["planted"] / category, [*good, *planted], rest)
        found = find_suspects(roots["planted"], category, image_size=options.image_size, cache=options.cache)
        is_planted = np.array([path.resolve() in {one.resolve() for one in planted} for path in found.paths])
        first = round(FIRST * len(found.paths))
        ranking = {
            "category": category,
            "planted": len(planted),
            "found": is_planted[:first].mean() * first / len(planted),
            "told": (found.stands_out & is_planted).sum() / len(planted),
            "wrongly": float((found.stands_out & ~is_planted).sum()),
        }
        _link(roots["without"] / category, [path.resolve() for path in found.paths[first:]], rest)
        rows = [
            {"category": category, "trained on": name, "seed": seed, **_measured(root, category, seed, options)}
            for name, root in roots.items()
        ]
    return ranking, rows


def _link(folder: Path, train: Sequence[Path], test: Sequence[Sample]) -> None:
    """Lay images out as MVTec AD does, by links; those of one name in two folders get another."""
    for number, path in enumerate(sorted(train)):
        _linked(folder / "train" / "good" / f"{number:05}{path.suffix}", path)
    for number, sample in enumerate(test):
        _linked(folder / "test" / sample.defect_type / f"{number:05}{sample.path.suffix}", sample.path)
        if sample.mask_path:
            mask = folder / "ground_truth" / sample.defect_type / f"{number:05}_mask{sample.mask_path.suffix}"
            _linked(mask, sample.mask_path)


def _linked(link: Path, path: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(path.resolve())


def _measured(root: Path, category: str, seed: int, options: argparse.Namespace) -> dict[str, float]:
    job = defaults.job(root, category, seed, options.image_size)
    data = load_training_data(job, root, options.cache)
    done = fit(job, data, device=defaults.CPU, report=lambda *_: None, get_checkpoint=lambda: None)
    bundle = defaults.bundle(job, done)
    metrics = evaluate(bundle, root, category, options.cache).metrics
    figures = {title: metrics[name] for title, name in FIGURES.items()}
    figures["missed"] /= metrics["defective_images"]
    figures["false alarms"] /= metrics["good_images"]
    return figures


def _tables(rankings: list[dict], trainings: list[dict]) -> str:
    first = pd.DataFrame(rankings).groupby("category", sort=False).mean().round(3)
    grouped = pd.DataFrame(trainings).groupby(["category", "trained on"], sort=False)[[*FIGURES]]
    mean, deviation = grouped.mean(), grouped.std()
    cells = {name: [f"{m:.3f} +- {d:.3f}" for m, d in zip(mean[name], deviation[name], strict=True)] for name in mean}
    second = pd.DataFrame(cells, index=mean.index).reset_index()
    return f"{first.reset_index().to_string(index=False)}\n\n{second.to_string(index=False)}"


if __name__ == "__main__":
    main()
