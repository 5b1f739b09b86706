"""Regions at the pixel threshold: how many good test images show, and how many of the true ones are found, per rate.

    python benchmarks/regions.py --root mvtec --categories bottle,screw
    python benchmarks/regions.py --root mvtec --rates 0.03 0.1 0.3 --output regions.txt

One model of `--architecture` with its defaults is made per category; its pixel threshold is set for each rate of false
regions per held-out good image. `promised` is the share of good images that shows a region at most, on average over
models made alike; `showing` is that of the test's good images. `on defects` is the share of the regions of defective
images that touch the ground truth.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import defaults
import heading
import pandas as pd
import torch

from msad.bundle.evaluation import evaluate
from msad.cluster.workers.job_worker import load_training_data
from msad.data_io.bit_depth import find_bit_depth
from msad.data_io.layout import find_layout
from msad.data_io.shape import find_ratio, fitted_size, parse_size
from msad.data_io.table import list_categories
from msad.models.false_regions import pixel_threshold
from msad.models.registry import architecture
from msad.models.thresholds import LeaveOneOut
from msad.training.batches import make_batches
from msad.training.job_config import JobConfig
from msad.training.loop import fit
from msad.training.validation import anomaly_maps


def main() -> None:
    parser = heading.parser(__doc__)
    parser.add_argument("--architecture", default="feature_memory")
    parser.add_argument("--image-size", type=parse_size, default=256)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.03, 0.1, 0.3])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for category in options.categories or list_categories(options.root):
        rows += measure(category, options, device)
        print(pd.DataFrame(rows).to_string(index=False), flush=True)
    heading.tell(options, device, pd.DataFrame(rows).to_string(index=False))


def measure(category: str, options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Return a row per rate."""
    good = find_layout(options.root).train(options.root, category)
    settings = {"image_size": fitted_size(options.image_size, find_ratio(good)), "bit_depth": find_bit_depth(good)}
    settings |= architecture(options.architecture).training_defaults
    job = JobConfig(category=category, architecture=options.architecture, **settings)
    data = load_training_data(job, options.root, options.cache)
    fitted = fit(job, data, device=device, report=lambda *_: None, get_checkpoint=lambda: None)
    with torch.no_grad():
        held_out = anomaly_maps(fitted.model, make_batches(job, data, fitted.model, device).validation())
    maps, _ = LeaveOneOut(fitted.scorer.scoring, held_out).good()
    bundle, rows = defaults.bundle(job, fitted), []
    for rate in options.rates:
        threshold, promised = pixel_threshold(maps, rate)
        result = evaluate(dataclasses.replace(bundle, pixel_threshold=threshold), options.root, category, options.cache)
        metrics, regions, is_good = result.metrics, result.regions, result.regions["defect_type"] == "good"
        rows.append(
            {
                "category": category,
                "held out": promised.held_out,
                "rate": rate,
                "threshold": round(threshold, 2),
                "promised": round(promised.expected, 3),
                "showing": round(regions["path"][is_good].nunique() / metrics["good_images"], 3),
                "per good image": round(metrics["false_regions"], 2),
                "found": f"{metrics['found_regions']:.0f} of {metrics['defect_regions']:.0f}",
                "on defects": round((regions["on_defect"][~is_good] > 0).mean(), 2),
            }
        )
    return rows


if __name__ == "__main__":
    main()
