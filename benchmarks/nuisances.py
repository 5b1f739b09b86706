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
import io
from collections.abc import Callable
from pathlib import Path

import defaults
import heading
import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from msad.bundle.bundles import Bundle
from msad.bundle.images import to_tensor
from msad.cluster.workers.job_worker import load_training_data

BLURS = (0.3, 0.5)  # deviation of a Gaussian, pixels
NOISE = 1 / 255
SHIFT = 2
QUALITY = 90


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


def changes(good_NCHW: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return ways to change images B×3×H×W in [0, 1], each as much as good ones differ among themselves."""
    grey_NHW = good_NCHW.mean(dim=1)
    height, width = grey_NHW.shape[1:]
    brightness, contrast, across, down = (
        float(ratio_N.clamp_min(1e-6).log().std())
        for ratio_N in (
            _mean(grey_NHW),
            grey_NHW.std(dim=(1, 2)) / _mean(grey_NHW).clamp_min(1e-6),
            _mean(grey_NHW[..., : width // 2]) / _mean(grey_NHW[..., width // 2 :]).clamp_min(1e-6),
            _mean(grey_NHW[:, : height // 2]) / _mean(grey_NHW[:, height // 2 :]).clamp_min(1e-6),
        )
    )
    along_W, along_H1 = torch.linspace(-1, 1, width), torch.linspace(-1, 1, height).unsqueeze(1)
    found: dict[str, Callable[[Tensor], Tensor]] = {
        "brightness": lambda x: x * (_ways(x) * brightness).exp(),
        "contrast": lambda x: torch.lerp(x.mean(dim=(1, 2, 3), keepdim=True), x, (_ways(x) * contrast).exp()),
        "brighter on one side": lambda x: x * (_ways(x) * along_W * across).exp(),
        "brighter above or below": lambda x: x * (_ways(x) * along_H1 * down).exp(),
        "noise of 1 of 255": _noisy,
        f"shift by {SHIFT} pixels": _shifted,
        f"JPEG of quality {QUALITY}": _compressed,
    }
    return found | {f"blur by {sigma} pixels": lambda x, s=sigma: gaussian_blur(x, 5, s) for sigma in BLURS}


def _mean(grey_NHW: Tensor) -> Tensor:
    return grey_NHW.mean(dim=(1, 2))


def _ways(image_BCHW: Tensor) -> Tensor:
    """Return 1 and -1 by turns, B×1×1×1."""
    return 1 - 2 * (torch.arange(len(image_BCHW)) % 2).float().view(-1, 1, 1, 1)


def _noisy(image_BCHW: Tensor) -> Tensor:
    noise_B1HW = torch.randn(len(image_BCHW), 1, *image_BCHW.shape[2:], generator=torch.Generator().manual_seed(0))
    return image_BCHW + NOISE * noise_B1HW


def _shifted(image_BCHW: Tensor) -> Tensor:
    height, width = image_BCHW.shape[2:]
    return F.pad(image_BCHW, (SHIFT, 0, SHIFT, 0), mode="replicate")[..., :height, :width]


def _compressed(image_BCHW: Tensor) -> Tensor:
    parts = []
    for image_HWC in (image_BCHW.permute(0, 2, 3, 1) * 255).round().byte().numpy():
        Image.fromarray(image_HWC).save(file := io.BytesIO(), "JPEG", quality=QUALITY)
        parts.append(np.asarray(Image.open(file)))
    return to_tensor(np.stack(parts), defaults.CPU)


@torch.no_grad()
def _scores(bundle: Bundle, image_BCHW: Tensor) -> np.ndarray:
    parts = [bundle.scorer(bundle.model.anomaly_maps(part))[1] for part in image_BCHW.clamp(0, 1).split(16)]
    return torch.cat(parts).double().numpy()


def _rows(bundle: Bundle, options: argparse.Namespace) -> list[dict]:
    data = load_training_data(bundle.job, options.root, options.cache)
    good, held_out = (to_tensor(part, defaults.CPU) for part in (data.train_NHWC, data.validation_NHWC))
    before = _scores(bundle, held_out)
    unit, shown = before.std(), held_out[: options.images]
    kept = before[: len(shown)]
    rows = []
    for name, change in changes(good).items():
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
