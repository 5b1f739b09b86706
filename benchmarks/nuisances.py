"""Nuisances: what a change that leaves a good image good does to its score, of models that `quality.py --bundles` kept.

    python benchmarks/quality.py --root mvtec --families feature_ensemble --bundles kept
    python benchmarks/nuisances.py --root mvtec --bundles kept --output nuisances.txt

The first held-out good images are changed in one way at a time, as much as the good images of the product differ among
themselves: one standard deviation of their brightness, contrast, and brightness of one half against the other, every
second image one way and the others the other way. Blur, noise, a shift of two pixels with the border repeated, and JPEG
are the same for all products. `by` is how much a score rises on average, in deviations of the scores of good images;
`above` is the share of changed images above the model's threshold, `above itself` that of the unchanged ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import defaults
import heading
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from msad.bundle.bundles import Bundle
from msad.bundle.images import to_tensor
from msad.cluster.workers.job_worker import load_training_data
from msad.models.synthesis.nuisances import nuisances


def main() -> None:
    """Measure every bundle and print the table."""
    parser = heading.parser(__doc__)
    parser.add_argument("--bundles", type=Path, required=True, help="a folder of bundles, as `quality.py` keeps them")
    parser.add_argument("--images", type=int, default=32, help="held-out good ones of each product")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(heading.machine(defaults.CPU, options.threads), flush=True)
    rows = []
    for bundle in defaults.kept(options):
        of_bundle = _rows(bundle, options)
        print(_text(of_bundle), flush=True)
        rows += of_bundle
    heading.tell(options, defaults.CPU, _text(rows))


@torch.no_grad()
def _scores(bundle: Bundle, image_BCHW: Tensor) -> np.ndarray:
    parts = [bundle.scorer(bundle.model.anomaly_maps(part))[1] for part in image_BCHW.clamp(0, 1).split(16)]
    return torch.cat(parts).double().numpy()


def _rows(bundle: Bundle, options: argparse.Namespace) -> list[dict]:
    data = load_training_data(bundle.job, options.root, options.cache)
    held_out = to_tensor(data.validation_NHWC, defaults.CPU)
    before = _scores(bundle, held_out)
    unit, shown = before.std(), held_out[: options.images]
    kept = before[: len(shown)]
    rows = []
    for name, change in nuisances(data.train_NHWC, margin=1.0).items():
        after = _scores(bundle, change(shown))
        rows.append(
            {
                "category": bundle.job.category,
                "family": bundle.job.architecture,
                "change": name,
                "by": float((after - kept).mean() / unit),
                "above": float((after > bundle.threshold).mean()),
                "above itself": float((kept > bundle.threshold).mean()),
            }
        )
    return rows


def _text(rows: list[dict]) -> str:
    return pd.DataFrame(rows).to_string(index=False, float_format="{:.2f}".format)


if __name__ == "__main__":
    main()
