"""Known defects: what a few real ones are worth for choosing scoring, threshold and trial.

    python benchmarks/known_defects.py --root ROOT --output known_defects.txt
    python benchmarks/known_defects.py --root ROOT --seeds 1 --trials 6 --output known_trials.txt

Of each product's real test defects twenty are hidden from the test, drawn by the seed from all types by their share.
The others and the good test images are what every row is measured on. 0, 1, 5 and 20 of the hidden ones are known
defects, of 1 and 5 several draws; nothing is trained on them, so a network serves all rows. With `--trials` there are
as many networks: the defaults, and draws from the search space; the one with the highest validation score is measured.
`+-` is the standard deviation over the seeds, each of which is a mean over its draws. `other` says how often another
scoring than the architecture's own was taken. No Ray, no MLflow, and the test labels choose nothing but what is hidden.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field

import defaults
import heading
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from msad.cluster.workers.job_worker import load_training_data
from msad.data_io.table import list_categories
from msad.data_io.test_split import TestSplit
from msad.models.base import AnomalyModel
from msad.models.defects import KnownDefects
from msad.models.metrics.image_metrics import image_auroc
from msad.models.scorer import Scorer
from msad.search_spaces import space
from msad.training.cross_fitting import fit_to_usual, with_training_images
from msad.training.job_config import JobConfig
from msad.training.training_data import TrainingData
from msad.training.validation import anomaly_maps, fixed_scoring, set_thresholds, validate

HIDDEN = 20
KNOWN = (0, 1, 5, 20)
Maps = dict[str, Tensor]


@dataclass
class Network:
    """One trained network with its maps of everything: stands for itself and its batches where it is validated."""

    job: JobConfig
    data: TrainingData
    model: AnomalyModel = field(repr=False)
    good: Maps = field(repr=False)
    drawn: Maps = field(repr=False)
    altered: Maps = field(repr=False)
    held_out: Maps = field(repr=False)
    test: Maps = field(repr=False)
    roi: None = None
    chosen: np.ndarray = field(default_factory=lambda: np.empty(0, int))

    @classmethod
    def trained(cls, job: JobConfig, images_NHWC: np.ndarray, options: argparse.Namespace) -> Network:
        data = load_training_data(job, options.root, options.cache)
        model, batches = defaults.look(job, data)
        good, drawn = anomaly_maps(model, batches.validation()), anomaly_maps(model, batches.synthetic())
        altered = anomaly_maps(model, batches.changed())
        own = fixed_scoring(model, job.view_size)
        held_out, _ = with_training_images(job, model, data, good, own)
        return cls(job, data, model, good, drawn, altered, held_out, defaults.maps(model, images_NHWC))

    @property
    def fixed_scoring(self) -> dict:
        return self.model.fixed_scoring

    def eval(self) -> Network:
        return self

    def anomaly_maps(self, maps: Maps) -> Maps:
        return maps

    def validation(self) -> Iterator[Maps]:
        yield self.good

    def changed(self) -> Iterator[Maps]:
        yield self.altered

    def synthetic(self, chosen_N: np.ndarray | None = None) -> Iterator[Maps]:
        yield self.drawn if chosen_N is None else {name: maps[chosen_N] for name, maps in self.drawn.items()}

    def known(self) -> Iterator[Maps]:
        if len(self.chosen):
            yield {name: maps[self.chosen] for name, maps in self.test.items()}

    def choose(self, chosen: np.ndarray, split: TestSplit, masks: np.ndarray) -> tuple[Scorer, float, float]:
        """Return scorer, threshold and validation score with some test images as known defects."""
        self.chosen, known = chosen, None
        if len(chosen):
            types = tuple(split.defect_types[index] for index in chosen)
            images = np.broadcast_to(np.uint8(0), (*masks[chosen].shape, 3))
            known = KnownDefects(images, masks[chosen], split.masked[chosen], types)
        data = dataclasses.replace(self.data, known=known)
        choice = validate(self, self, data, self.job)
        scorer, seen = fit_to_usual(choice.scorer.scoring, self.held_out, self.altered)
        cuts = set_thresholds(self, self, data, scorer, self.job, seen)
        return scorer, cuts.threshold, choice.validation.score


def main() -> None:
    """Measure every product and print the table."""
    options = _options()
    torch.set_num_threads(options.threads)
    print(heading.machine(defaults.CPU, options.threads), flush=True)
    rows = []
    for category in options.categories or list_categories(options.root):
        for seed in range(options.seeds):
            rows += _product(category, seed, options)
            print(_table(pd.DataFrame(rows)).to_string(index=False), flush=True)
    heading.tell(options, defaults.CPU, _table(pd.DataFrame(rows)).to_string(index=False))


def _options() -> argparse.Namespace:
    parser = heading.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="splits, and draws of what is hidden")
    parser.add_argument("--draws", type=int, default=8, help="of the known ones among the hidden ones")
    parser.add_argument("--trials", type=int, default=1, help="networks to choose from")
    parser.add_argument("--image-size", default=256)
    return parser.parse_args()


def _product(category: str, seed: int, options: argparse.Namespace) -> list[dict]:
    """Return a row per number of known defects and draw."""
    split = TestSplit(options.root, category)
    base = defaults.job(options.root, category, seed, options.image_size)
    images, masks = split.images(base.image_size, options.cache, base.bit_depth), split.masks(base.image_size)
    networks = [Network.trained(job, images, options) for job in _jobs(base, options.trials)]
    rng = np.random.default_rng(seed)
    hidden = _hidden(split, rng)
    rest = np.setdiff1d(np.flatnonzero(split.labels == 1), hidden)
    good, rows = np.flatnonzero(split.labels == 0), []
    for count in KNOWN:
        for _ in range(options.draws if 0 < count < HIDDEN else 1):
            chosen = np.sort(rng.permutation(hidden)[:count])
            choices = [(network, *network.choose(chosen, split, masks)) for network in networks]
            network, scorer, cut, _ = max(choices, key=lambda choice: choice[-1])
            scores = scorer(network.test)[1].double().numpy()
            rows.append(
                {
                    "category": category,
                    "known": count,
                    "seed": seed,
                    "AUROC": image_auroc(split.labels[[*good, *rest]], scores[[*good, *rest]]),
                    "missed": (scores[rest] <= cut).mean(),
                    "false alarms": (scores[good] > cut).mean(),
                    "other": scorer.scoring.reduction != network.fixed_scoring["reduction"]
                    or scorer.scoring.calibration != network.fixed_scoring["calibration"],
                }
            )
    return rows


def _jobs(base: JobConfig, trials: int) -> Iterator[JobConfig]:
    yield base
    if trials > 1:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=base.seed))
        for _ in range(trials - 1):
            yield base.with_parameters(study.ask(space(base.architecture)).params)


def _hidden(split: TestSplit, rng: np.random.Generator) -> np.ndarray:
    """Draw `HIDDEN` defective images, of each type its share."""
    defective = np.flatnonzero(split.labels == 1)
    # In the order of types, each at random, every so-and-so-many-th: all types by their share.
    order = sorted(rng.permutation(defective), key=lambda index: split.defect_types[index])
    return np.array(order)[np.linspace(0, len(order) - 1, HIDDEN).round().astype(int)]


def _table(rows: pd.DataFrame) -> pd.DataFrame:
    """Average over draws, then over seeds with their standard deviation."""
    of_seed = rows.groupby(["category", "known", "seed"], sort=False)[
        ["AUROC", "missed", "false alarms", "other"]
    ].mean()
    grouped = of_seed.groupby(["category", "known"], sort=False)
    mean, deviation = grouped.mean(), grouped.std()
    cells = {name: [f"{m:.3f} +- {d:.3f}" for m, d in zip(mean[name], deviation[name], strict=True)] for name in mean}
    return pd.DataFrame(cells, index=mean.index).reset_index()


if __name__ == "__main__":
    main()
