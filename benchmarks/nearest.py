"""The search of a large memory: along its main axes first, beside all of its rows.

    python benchmarks/nearest.py --root ROOT --output nearest.txt

Of every category the default `feature_memory` looks at the good images, and held-out ones are looked up both ways, by
turns. `ratio` is the time of an image with all rows, median of `--rounds`, over that along the axes. `found` is the
share of places whose nearest row is found, `further` by how much the distance exceeds the nearest on average, over all
places, and `score` the same of an image's score, the mean of the highest hundredth.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import defaults
import heading
import pandas as pd
import torch
from torch import Tensor

from msad.bundle.images import to_tensor
from msad.cluster.workers.job_worker import load_training_data
from msad.data_io.table import list_categories
from msad.models.memory import nearest, nearly_nearest
from msad.models.scorer import reduce


def main() -> None:
    """Measure every category and print the table."""
    parser = heading.parser(__doc__)
    parser.add_argument("--images", type=int, default=8, help="held-out ones of each category")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(heading.machine(defaults.CPU, options.threads), flush=True)
    rows = []
    for category in options.categories or list_categories(options.root):
        rows.append(_row(category, options))
        print(_text(rows[-1:]), flush=True)
    heading.tell(options, defaults.CPU, _text(rows))


@torch.no_grad()
def _row(category: str, options: Any) -> dict[str, Any]:
    job = defaults.job(options.root, category, 0)
    data = load_training_data(job, options.root, options.cache)
    model, _ = defaults.look(job, data)
    memory, shown = model.memory, to_tensor(data.validation_NHWC[: options.images], defaults.CPU)
    features = model.encode(shown)[: len(model.channels)]
    places_NC = memory.places(model.standardised(features)).flatten(0, 2)
    bank_RC = memory.bank_RC.float()
    ways: dict[str, Callable[[], Tensor]] = {
        "all rows": lambda: nearest(places_NC, bank_RC),
        "axes": lambda: nearly_nearest(places_NC, bank_RC, memory.axes_CA, memory.along_RA),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, look_up in ways.items():
            began = time.perf_counter()
            look_up()
            seconds[name].append((time.perf_counter() - began) / len(shown))
    every_N, axes_N = (look_up() for look_up in ways.values())
    of_all, of_axes = (statistics.median(seconds[name]) for name in ways)
    score_all, score_axes = (reduce(distance_N.view(len(shown), -1), "top1") for distance_N in (every_N, axes_N))
    return {
        "category": category,
        "rows": len(bank_RC),
        "places": len(places_NC) // len(shown),
        "all rows, ms": 1000 * of_all,
        "axes, ms": 1000 * of_axes,
        "ratio": of_all / of_axes,
        "found": float((axes_N <= every_N * (1 + 1e-5)).double().mean()),
        "further": float((axes_N / every_N.clamp_min(1e-9) - 1).clamp_min(0).mean()),
        "score": float((score_axes / score_all - 1).abs().mean()),
    }


def _text(rows: list[dict[str, Any]]) -> str:
    return pd.DataFrame(rows).to_string(index=False, float_format="{:.4g}".format)


if __name__ == "__main__":
    main()
