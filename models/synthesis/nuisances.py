"""Changes that leave a good image good: another light, a camera's noise, a little blur, a shift, a file's compression.

A detector that takes them for defects is of no use behind a camera. So held-out good images count as good a second time
where they are changed so, when a model is judged and when its threshold is set (`msad.training.validation`). How far
light may change, the good images say themselves. The others are the same for every product, and hardly to be seen.

Tensors are named by shape: B images of a batch, N good images, H×W pixels.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

MARGIN = 1.5
"""How much further than the good images themselves light goes: so many of their standard deviations."""

BLURS = (0.3, 0.5)  # deviation of a Gaussian, pixels
NOISE = 1.0  # standard deviation, grey levels of 255
SHIFT = 2  # pixels
QUALITY = 90  # of a JPEG file

VERSION = 1
"""To be raised whenever the same images are changed otherwise."""

_TINY = 1e-3

Change = Callable[[Tensor], Tensor]


def nuisances(good_NHWC: np.ndarray, margin: float = MARGIN) -> dict[str, Change]:
    """Return the ways to change images of a product, each float32 B×3×H×W in [0, 1] to the same, by name.

    Of the images of a batch, every second one is made brighter, of more contrast and so on, the others less.

    Parameters
    ----------
    good_NHWC
        uint8 good images of the product, at least two, which say how far light may change.
    margin
        How many of their standard deviations it does.
    """
    height, width = good_NHWC.shape[1:3]
    light_N4 = np.maximum([_light(image_HWC) for image_HWC in good_NHWC], _TINY)
    brightness, contrast, across, down = (margin * np.log(light_N4).std(axis=0)).tolist()
    along_W, along_H1 = torch.linspace(-1, 1, width), torch.linspace(-1, 1, height).unsqueeze(1)
    changes: dict[str, Change] = {
        "brightness": lambda x: x * (_ways(x) * brightness).exp(),
        "contrast": lambda x: torch.lerp(x.mean(dim=(1, 2, 3), keepdim=True), x, (_ways(x) * contrast).exp()),
        "brighter on one side": lambda x: x * (_ways(x) * along_W * across).exp(),
        "brighter above or below": lambda x: x * (_ways(x) * along_H1 * down).exp(),
        f"noise of {NOISE:g} of 255": _noisy,
        f"shift by {SHIFT} pixels": _shifted,
        f"JPEG of quality {QUALITY}": _compressed,
    }
    changes |= {f"blur by {sigma} pixels": partial(_blurred, sigma=sigma) for sigma in BLURS}
    return {name: lambda x, change=change: change(x).clamp(0, 1) for name, change in changes.items()}


def _blurred(image_BCHW: Tensor, sigma: float) -> Tensor:
    return torch.from_numpy(ndimage.gaussian_filter(image_BCHW.numpy(), sigma, axes=(2, 3), radius=2, mode="mirror"))


def changed_once(good_NHWC: np.ndarray, shown_NHWC: np.ndarray) -> np.ndarray:
    """Change each image in one of the ways of `nuisances`, which take turns; uint8 N×H×W×3 as those shown."""
    changes = list(nuisances(good_NHWC).values())
    changed_NHWC = np.empty(shown_NHWC.shape, np.uint8)
    for place, change in enumerate(changes):
        for turn, index in enumerate(range(place, len(shown_NHWC), len(changes))):
            # One by one, for they may be large; behind another image where it is its turn to change the other way.
            image_1CHW = torch.from_numpy(np.array(shown_NHWC[index])).permute(2, 0, 1)[None].float() / 255
            made_CHW = change(image_1CHW.expand(1 + turn % 2, -1, -1, -1))[-1]
            changed_NHWC[index] = (made_CHW * 255).round().byte().permute(1, 2, 0).numpy()
    return changed_NHWC


def _light(image_HWC: np.ndarray) -> tuple[float, float, float, float]:
    """Return an image's brightness, its contrast, and how much brighter its left and its upper half are."""
    grey_HW = image_HWC.mean(axis=2, dtype=np.float32)
    (upper, lower), (left, right) = ([half.mean() for half in np.array_split(grey_HW, 2, axis)] for axis in (0, 1))
    mean = grey_HW.mean()
    return tuple(
        one / max(other, _TINY) for one, other in ((mean, 1), (grey_HW.std(), mean), (left, right), (upper, lower))
    )


def _ways(image_BCHW: Tensor) -> Tensor:
    """Return 1 and -1 by turns, B×1×1×1."""
    return 1 - 2 * (torch.arange(len(image_BCHW)) % 2).float().view(-1, 1, 1, 1)


def _noisy(image_BCHW: Tensor) -> Tensor:
    noise_B1HW = torch.randn(len(image_BCHW), 1, *image_BCHW.shape[2:], generator=torch.Generator().manual_seed(0))
    return image_BCHW + NOISE / 255 * noise_B1HW


def _shifted(image_BCHW: Tensor) -> Tensor:
    height, width = image_BCHW.shape[2:]
    return F.pad(image_BCHW, (SHIFT, 0, SHIFT, 0), mode="replicate")[..., :height, :width]


def _compressed(image_BCHW: Tensor) -> Tensor:
    parts = []
    for image_HWC in (image_BCHW.permute(0, 2, 3, 1) * 255).round().byte().numpy():
        Image.fromarray(image_HWC).save(file := io.BytesIO(), "JPEG", quality=QUALITY)
        parts.append(np.asarray(Image.open(file)))
    return torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2).float() / 255
