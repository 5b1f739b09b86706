"""Speed of the pixel metrics, side by side with anomalib, scikit-learn and adeval, and how far the figures agree.

    pip install '.[benchmarks]'
    python benchmarks/metrics.py --root mvtec

The masks are a category's own at their own size: MVTec AD's bottle has 83 of 900×900, 67 million pixels. The maps are
made up from a seed unless `--maps` gives an array: a smooth background as of a detector on good images, a smooth answer
to each defect whose strength differs from image to image (some are missed), and white noise as of a sensor. float32
holds few values of that range twice, so ties are as rare as chance makes them.

Ours is all of it: AUROC, average precision, AU-PRO to 0.3 and 0.05, of the whole and of every defect type. anomalib
gives AU-PRO to 0.3, scikit-learn the AUROC, adeval AUROC, average precision and AU-PRO to 0.3 approximated by 1,000
thresholds. All are given the same arrays and threads; scikit-learn and adeval use one whatever they are given. Measured
are wall seconds and processor seconds (user and system, of all threads): on a machine that others use too only the
latter compare, though crowded caches cost them as well. Figures are medians; the quick ones take turns.

adeval 1.1.0 calls `numpy.trapz`, which NumPy 2.4 no longer has: where it is missing, this file puts it back.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from msad.data_io.test_split import TestSplit
from msad.models.metrics.pixel_metrics import PixelMetrics, grouped_pixel_metrics, pixel_metrics

PEERS = ("anomalib", "scikit-learn", "adeval")
LIBRARIES = (*PEERS, "numpy", "scipy", "torch")


def main() -> None:
    """Measure, and print the machine, the times, the ratios and the differences."""
    options = _options()
    torch.set_num_threads(options.threads)
    if not hasattr(np, "trapz"):
        np.trapz = np.trapezoid
    split = TestSplit(options.root, options.category)
    masks = np.stack(list(split.masks()))
    maps = np.load(options.maps) if options.maps else made_up_maps(masks, options.seed)
    if maps.shape != masks.shape:
        raise SystemExit(f"{options.maps}: {maps.shape}, but the masks of {options.category} are {masks.shape}")
    maps = np.ascontiguousarray(maps, np.float32)
    types = [name if label else None for name, label in zip(split.defect_types, split.labels, strict=True)]
    print(_conditions(options, masks, maps, types), flush=True)

    quick: dict[str, Callable[[], Any]] = {
        "ours": lambda: grouped_pixel_metrics(maps, masks, types)[0],
        "ours, no types": lambda: pixel_metrics(maps, masks),
        "adeval": lambda: _adeval(maps, masks),
    }
    slow: dict[str, Callable[[], Any]] = {
        "anomalib AUPRO": lambda: _anomalib(maps, masks),
        "scikit-learn AUROC": lambda: _scikit_learn(maps, masks),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in quick | slow}
    results: dict[str, Any] = {}
    for calls, repeats in ((quick, options.repeats), (slow, options.slow_repeats)):
        for _ in range(repeats):
            for name, call in calls.items():
                results[name], seconds = timed(call)
                times[name].append(seconds)
                print(f"  {name}: {seconds[0]:.2f} s, {seconds[1]:.2f} s of processors", file=sys.stderr, flush=True)
    medians = {
        name: tuple(statistics.median(column) for column in zip(*runs, strict=True)) for name, runs in times.items()
    }
    print(f"\n{'':28}{'wall s':>10}{'processor s':>13}{'runs':>6}")
    for name, (wall, processor) in medians.items():
        print(f"{name:28}{wall:10.2f}{processor:13.2f}{len(times[name]):6}")
    together = tuple(map(sum, zip(medians["anomalib AUPRO"], medians["scikit-learn AUROC"], strict=True)))
    print("\ntimes as long as ours          wall    processor")
    for name, peer in (("anomalib + scikit-learn", together), ("adeval", medians["adeval"])):
        print(f"{name:25}" + "".join(f"{one / ours:10.1f}" for one, ours in zip(peer, medians["ours"], strict=True)))
    print(_agreement(results), flush=True)


def made_up_maps(masks: np.ndarray, seed: int) -> np.ndarray:
    """Return float32 anomaly maps for the masks N×H×W, as the head of this file says."""
    rng = np.random.default_rng(seed)
    maps = np.empty(masks.shape, np.float32)
    for anomaly_map, mask in zip(maps, masks, strict=True):
        coarse = ndimage.gaussian_filter(rng.standard_normal([side // 4 + 1 for side in mask.shape]), 3)
        zoomed = ndimage.zoom(coarse / coarse.std(), 4, order=1)[: mask.shape[0], : mask.shape[1]]
        answer = ndimage.gaussian_filter(mask.astype(np.float32), 6) * max(0.0, rng.normal(2.0, 1.0))
        anomaly_map[:] = 1.0 + 0.4 * zoomed + answer + 0.05 * rng.standard_normal(mask.shape)
    return maps


def timed(call: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    """Return a call's result, and the wall and processor seconds it took."""
    wall, processor = time.perf_counter(), time.process_time()
    result = call()
    return result, (time.perf_counter() - wall, time.process_time() - processor)


def _adeval(maps: np.ndarray, masks: np.ndarray) -> tuple[float, float, float]:
    from adeval import auroc_aupr_aupro

    return auroc_aupr_aupro(maps, masks.view(np.uint8))


def _anomalib(maps: np.ndarray, masks: np.ndarray) -> float:
    from anomalib.metrics.aupro import _AUPRO

    metric = _AUPRO(fpr_limit=0.3)
    metric.update(torch.from_numpy(maps), torch.from_numpy(masks.view(np.uint8)))
    return float(metric.compute())


def _scikit_learn(maps: np.ndarray, masks: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(masks.ravel(), maps.ravel()))


def _agreement(results: dict[str, Any]) -> str:
    ours: PixelMetrics = results["ours"]
    auroc, precision, aupro = results["adeval"]
    rows = (
        ("AUROC, scikit-learn", ours.auroc, results["scikit-learn AUROC"]),
        ("AU-PRO to 0.3, anomalib", ours.aupro_30, results["anomalib AUPRO"]),
        ("AUROC, adeval", ours.auroc, auroc),
        ("average precision, adeval", ours.average_precision, precision),
        ("AU-PRO to 0.3, adeval", ours.aupro_30, aupro),
        ("AU-PRO to 0.3, no types", ours.aupro_30, results["ours, no types"].aupro_30),
    )
    lines = [f"{name:28}{one:12.8f}{peer:12.8f}{peer - one:12.1e}" for name, one, peer in rows]
    return "\n".join([f"\n{'':28}{'ours':>12}{'theirs':>12}{'difference':>12}", *lines])


def _conditions(options: argparse.Namespace, masks: np.ndarray, maps: np.ndarray, types: list[str | None]) -> str:
    kinds = len({name for name in types if name})
    distinct = len(np.unique(maps[masks]))
    source = "from a file" if options.maps else f"made up, seed {options.seed}"
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)
    return "\n".join(
        [
            f"{_processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.0f}; {options.threads} threads for all",
            f"Python {platform.python_version()}; {versions}; {time.strftime('%Y-%m-%d')}",
            f"{options.category}: {len(masks)} masks of {masks.shape[1]}×{masks.shape[2]}, {masks.size:,} pixels, "
            f"{masks.sum():,} of them defects with {distinct:,} distinct values; {kinds} defect types; maps {source}",
        ]
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("MSAD_DATA")
    parser.add_argument("--root", type=Path, default=default, required=not default, help="[default: $MSAD_DATA]")
    parser.add_argument("--category", default="bottle", help="its test images must be of one size")
    parser.add_argument("--maps", type=Path, help="an .npy file, N×H×W in the order of the test split, instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5, help="of ours and adeval")
    parser.add_argument("--slow-repeats", type=int, default=3, help="of anomalib and scikit-learn")
    return parser.parse_args()


if __name__ == "__main__":
    main()
