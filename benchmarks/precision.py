"""What a network of fewer bits costs: every figure of the bundle and of its exported files, on the test split.

    python benchmarks/precision.py --root mvtec --categories bottle,screw
    python benchmarks/precision.py --root mvtec --architecture feature_pyramid --output precision.txt

One model of `--architecture` with its defaults is made per category and exported as float32, float16 and int8, whose
scales come from the first 64 good training images. `score` and `map` are the largest differences to the bundle on the
first 8 good training images, as shares of the range of the bundle's maps; all else is what `msad evaluate` says of the
file, at the thresholds of the bundle. Sizes are in MB; the time is that of one image of the model's size.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import defaults
import heading
import pandas as pd
import torch

from msad.bundle.evaluation import Evaluation, evaluate
from msad.bundle.export import export
from msad.bundle.export_form import Form
from msad.bundle.exported_model import ExportedModel
from msad.bundle.onnx_precision import PRECISIONS
from msad.cluster.workers.job_worker import load_training_data
from msad.data_io.bit_depth import find_bit_depth
from msad.data_io.layout import find_layout
from msad.data_io.shape import find_ratio, fitted_size, parse_size
from msad.data_io.table import list_categories
from msad.models.registry import architecture
from msad.training.job_config import JobConfig
from msad.training.loop import fit

FIGURES = {
    "image AUROC": "image_auroc",
    "PRAUC": "image_prauc",
    "recall at FPR": "recall_at_fpr",
    "pixel AUROC": "pixel_auroc",
    "pixel AP": "pixel_prauc",
    "AU-PRO": "aupro_30",
    "to 0.05": "aupro_05",
}


def main() -> None:
    parser = heading.parser(__doc__)
    parser.add_argument("--architecture", default="feature_memory")
    parser.add_argument("--image-size", type=parse_size, default=256)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    for category in options.categories or list_categories(options.root):
        rows += measure(category, options)
        print(table(rows), flush=True)
    heading.tell(options, torch.device("cpu"), table(rows))


def measure(category: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for the bundle and one for each file."""
    good = find_layout(options.root).train(options.root, category)
    settings = {"image_size": fitted_size(options.image_size, find_ratio(good)), "bit_depth": find_bit_depth(good)}
    settings |= architecture(options.architecture).training_defaults
    job = JobConfig(category=category, architecture=options.architecture, **settings)
    data = load_training_data(job, options.root, options.cache)
    fitted = fit(job, data, device=torch.device("cpu"), report=lambda *_: None, get_checkpoint=lambda: None)
    bundle = defaults.bundle(job, fitted)
    rows = [row(category, "bundle", evaluate(bundle, options.root, category, options.cache), {})]
    with tempfile.TemporaryDirectory() as folder:
        for precision in PRECISIONS:
            form = Form(precision=precision, calibrate_on=[options.root] if precision == "int8" else ())
            done = export(bundle, Path(folder) / f"{precision}.onnx", good[:8], form)
            found = evaluate(ExportedModel(done.path, threads=options.threads), options.root, category, options.cache)
            differences = {"score": done.score / done.range, "map": done.map / done.range}
            rows.append(row(category, precision, found, differences | {"MB": done.path.stat().st_size / 1e6}))
    return rows


def row(category: str, name: str, found: Evaluation, more: dict[str, float]) -> dict[str, Any]:
    metrics = found.metrics
    return {
        "category": category,
        "of": name,
        **{title: metrics.get(metric, math.nan) for title, metric in FIGURES.items()},
        "FP": f"{metrics['false_positives']:.0f}/{metrics['good_images']:.0f}",
        "missed": f"{metrics['misses']:.0f}/{metrics['defective_images']:.0f}",
        "regions": f"{metrics['found_regions']:.0f}/{metrics['defect_regions']:.0f}",
        "false": metrics["false_regions"],
        "ms": metrics["latency_ms"],
        **{key: more.get(key, math.nan) for key in ("score", "map", "MB")},
    }


def table(rows: list[dict[str, Any]]) -> str:
    digits = {"ms": 0, "MB": 1, "false": 2, "score": 5, "map": 5}
    formats = {name: f"{{:.{digits.get(name, 4)}f}}".format for name in rows[0] if isinstance(rows[0][name], float)}
    return pd.DataFrame(rows).to_string(index=False, formatters=formats, na_rep="-")


if __name__ == "__main__":
    main()
