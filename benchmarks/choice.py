"""The choice of a scoring: what validation says of each way from maps to a score, beside what the test split says.

    python benchmarks/quality.py --root ROOT --families feature_ensemble --seeds 3 --bundles kept
    python benchmarks/choice.py --root ROOT --bundles kept --output choice.txt

Every bundle is read in every way: by its architecture's own scoring, and by all that a choice is made from
(`msad.models.scoring.default_candidates`). `rho` is Spearman's correlation, over these, of the image AUROC on synthetic
defects (each half of the good images calibrated by the other) and on the test split. `own` is the AUROC on test of the
architecture's scoring, `chosen` of the one that is best on synthetic defects, `best` of the one that is best on test;
`- own` and `- chosen` are what these are behind the best. `light` is the AUROC between the scores of validation's and
of test's good images by `own`: 0.5 where they are alike. No test label chooses anything.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import defaults
import heading
import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr

from msad.bundle.bundles import Bundle
from msad.cluster.workers.job_worker import load_training_data
from msad.data_io.test_split import TestSplit
from msad.models.defects import DefectGroups
from msad.models.judge import Judge
from msad.models.metrics.image_metrics import image_auroc
from msad.models.scoring import Scoring, default_candidates, fit_scorer
from msad.models.thresholds import LeaveOneOut
from msad.training.batches import make_batches
from msad.training.validation import anomaly_maps, fixed_scoring


def main() -> None:
    """Measure every product and print a row per seed, and their means."""
    options = _options()
    torch.set_num_threads(options.threads)
    print(heading.machine(defaults.CPU, options.threads), flush=True)
    rows = []
    for bundle in defaults.kept(options):
        rows.append(_row(bundle, options))
        print(_text(pd.DataFrame(rows)), flush=True)
    frame = pd.DataFrame(rows)
    means = frame.drop(columns="seed").groupby(["family", "category"], sort=False).mean(numeric_only=True)
    heading.tell(options, defaults.CPU, f"{_text(frame)}\n\n{_text(means.reset_index())}")


def _options() -> argparse.Namespace:
    parser = heading.parser(__doc__)
    parser.add_argument("--bundles", type=Path, required=True, help="a folder of bundles, as `quality.py` keeps them")
    return parser.parse_args()


@torch.no_grad()
def _row(bundle: Bundle, options: argparse.Namespace) -> dict[str, Any]:
    job, model = bundle.job, bundle.model
    data = load_training_data(job, options.root, options.cache)
    batches = make_batches(job, data, model, defaults.CPU)
    good, altered, drawn = (
        anomaly_maps(model, part()) for part in (batches.validation, batches.changed, batches.synthetic)
    )
    both = {name: torch.cat([maps, altered[name]]) for name, maps in good.items()}
    split = TestSplit(options.root, job.category)
    test = defaults.maps(model, split.images(job.image_size, options.cache, job.bit_depth))
    own = fixed_scoring(model, job.view_size)
    ways = [way for way in default_candidates(list(good), job.view_size) if way != own] + ([own] if own else [])
    scores = [fit_scorer(way, both)(test)[1].double().numpy() for way in ways]
    on_test = np.array([image_auroc(split.labels, score_N) for score_N in scores])
    on_drawn = _on_drawn(both, drawn, DefectGroups.of(data.synthetic), ways)
    chosen, best = on_drawn.argmax(), on_test.max()
    row = {
        "category": job.category,
        "family": job.architecture,
        "seed": job.seed,
        "ways": len(ways),
        "rho": spearmanr(on_drawn, on_test).statistic,
    }
    at = {"own": len(ways) - 1} if own else {}
    row |= {name: on_test[position] for name, position in (at | {"chosen": chosen}).items()} | {"best": best}
    row |= {f"- {name}": best - on_test[position] for name, position in (at | {"chosen": chosen}).items()}
    if own:
        held_out, seen = LeaveOneOut(own, good).good()[1], scores[-1][split.labels == 0]
        is_seen = np.repeat([0, 1], [len(held_out), len(seen)])
        row["light"] = image_auroc(is_seen, np.concatenate([held_out, seen]))
    return row


def _on_drawn(good: dict, drawn: dict, defects: DefectGroups, ways: list[Scoring]) -> np.ndarray:
    """Return the mean image AUROC over the groups of synthetic defects of each way; half of the images are changed."""
    judge = Judge(good, defects, ways, changed=len(next(iter(good.values()))) // 2)
    judge.update(good)
    judge.update(drawn)
    return np.nanmean(judge.image_aurocs(judge.image_wins()), axis=(1, 2))


def _text(frame: pd.DataFrame) -> str:
    return frame.to_string(index=False, float_format="{:.3f}".format, na_rep="-")


if __name__ == "__main__":
    main()
