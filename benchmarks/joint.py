"""One network for several products against one for each: what it costs every product.

    python benchmarks/joint.py --root mvtec
    python benchmarks/joint.py --root mvtec --categories bottle,screw --architecture feature_pyramid --output joint.txt

Each product is trained on alone and then with all others, with the architecture's defaults, at one image size for all:
`--image-size` in pixels of a square. With `--rows-each` the memory of the joint network has as many rows for each
product as a separate one. `validation` is the validation score, all else is of the test images.
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
from msad.data_io.table import list_categories
from msad.models.registry import default_parameters
from msad.training.job_config import JobConfig, joint_category
from msad.training.loop import fit_products

FIGURES = {"image AUROC": "image_auroc", "PRAUC": "image_prauc", "AU-PRO": "aupro_30"}


def main() -> None:
    """Measure every product and print the table."""
    parser = heading.parser(__doc__)
    parser.add_argument("--architecture", default="feature_memory")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--epochs", type=int, help="default: the architecture's")
    parser.add_argument("--rows-each", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    products = tuple(options.categories or list_categories(options.root))
    same = {"image_size": options.image_size} | ({"epochs": options.epochs, "steps": 0} if options.epochs else {})
    jobs = [defaults.job(options.root, name, 0, family=options.architecture) for name in products]
    jobs = [dataclasses.replace(job, **same) for job in jobs]
    steps = jobs[0].steps * len(products)
    whole = dataclasses.replace(jobs[0], category=joint_category(products), joint=products, steps=steps)
    rows = []
    for job in (*jobs, whole):
        if job.is_whole and options.rows_each:
            job = job.with_parameters({"model/rows": len(products) * default_parameters(job.architecture)["rows"]})
        rows += measure(job, options, device)
        table = pd.DataFrame(rows).sort_values(["category", "network"], ascending=[True, False], kind="stable")
        print(table.round(4).to_string(index=False), flush=True)
    heading.tell(options, device, table.round(4).to_string(index=False))


def measure(job: JobConfig, options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Train a job and return a row for each of its products."""
    data = [load_training_data(one, options.root, options.cache) for one in job.of_products()]
    made = fit_products(job, data, device=device, report=lambda *_: None, get_checkpoint=lambda: None)
    rows = []
    for one, fitted in zip(job.of_products(), made, strict=True):
        bundle = defaults.bundle(one, fitted)
        metrics = evaluate(bundle, options.root, one.category, options.cache).metrics
        counts = {
            "FP": f"{metrics['false_positives']:.0f} of {metrics['good_images']:.0f}",
            "missed": f"{metrics['misses']:.0f} of {metrics['defective_images']:.0f}",
        }
        figures = {title: metrics[name] for title, name in FIGURES.items()}
        network = {"category": one.category, "network": "joint" if one.joint else "separate"}
        rows.append({**network, "validation": fitted.validation["score"], **figures, **counts})
    return rows


if __name__ == "__main__":
    main()
