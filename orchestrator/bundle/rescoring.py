"""Two bundles on one validation set: what decides between models that were validated on different images.

A validation score compares only with those of the same images and defects. So both models are scored once more, each as
it is delivered, on good images that neither was trained on and on synthetic defects of them that neither was chosen by.

Shapes: N images, H×W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from msad.bundle.bundles import Bundle
from msad.bundle.prediction import Prediction
from msad.data_io.cache import digests, load_images
from msad.data_io.roi import load_roi
from msad.data_io.shape import plain_size
from msad.data_io.splits import split_good_images
from msad.errors import MsadError
from msad.models.metrics.image_metrics import average_precision, image_auroc
from msad.models.scoring import IMAGE_SHARE
from msad.models.synthesis.synthetic_defects import SyntheticSet, make_synthetic_defects

FEWEST_IMAGES = 10  # as many as a validation split has at least, of a dataset that has them
OTHER_DRAW = 1_000_003
"""Added to the seed: the challenger's scoring was chosen on the defects that its own seed draws on these images."""

NORMAL_PIXELS = 4096  # of one image, for the pixel average precision; all defect pixels are taken
_PIXELS_AT_ONCE = 1 << 22


class NotComparable(MsadError):
    """Two models cannot be scored on one validation set; the text says why."""


@dataclass(frozen=True)
class Rescored:
    """The validation scores of two models on one set of `images` good images and `defects` synthetic ones."""

    challenger: float
    champion: float
    images: int
    defects: int
    size: int | str

    def words(self) -> str:
        """Say on what, in a few words."""
        return f"{self.images} good images and {self.defects} synthetic defects at {self.size} pixels"


def rescore(challenger: Bundle, champion: Bundle, dataset: Path, layout: str, cache: Path | None) -> Rescored:
    """Score both on the good images that the challenger was validated on and the champion was not trained on.

    The images have the larger of both models' heights and widths, and the defects one size on them: the same picture is
    shown to both, each of which makes it as large as it wants it.

    Parameters
    ----------
    challenger, champion
        As they were delivered, on the device to score on.
    dataset, layout
        The challenger's images, see `msad.data_io.splits.split_good_images`.
    cache
        Of decoded images; None for the default.

    Raises
    ------
    NotComparable
        Fewer than `FEWEST_IMAGES` are left, a bundle does not say what it was trained on, both read the files of a
        camera of more than 8 bits by different depths, or they look at different regions of interest.
    msad.data_io.errors.DataError
        The images cannot be read.
    """
    job = challenger.job
    if job.bit_depth != champion.job.bit_depth:  # each would see other grey levels in the same files
        raise NotComparable(
            f"the champion reads image files as of {champion.job.bit_depth} bits, the new model as of {job.bit_depth}"
        )
    paths = split_good_images(dataset, job.category, job.seed, layout=layout).validation_paths
    seen = _trained_on(challenger, "the new model") | _trained_on(champion, "the champion")
    new = [path for path, digest in zip(paths, digests(paths, cache), strict=True) if digest not in seen]
    if len(new) < FEWEST_IMAGES:
        raise NotComparable(
            f"the champion was trained on {len(paths) - len(new)} of the {len(paths)} good images that the new model "
            f"was validated on, and at least {FEWEST_IMAGES} others are needed to score both on"
        )
    if _roi_of(challenger) != _roi_of(champion):
        raise NotComparable("the champion and the new model look at different regions of interest")
    sides = tuple(map(max, job.sides, champion.job.sides))
    seen = max(one.view_size / math.sqrt(math.prod(one.sides)) for one in (job, champion.job))
    view = round(math.sqrt(math.prod(sides)) * seen)
    good_NHWC = np.asarray(load_images(new, sides, cache, job.bit_depth))
    roi_HW = load_roi(dataset, job.category, sides, new[0], layout)
    synthetic = make_synthetic_defects(good_NHWC, job.seed + OTHER_DRAW, view_size=view, roi_HW=roi_HW)
    scores = [validation_score(bundle, good_NHWC, synthetic) for bundle in (challenger, champion)]
    return Rescored(*scores, images=len(new), defects=len(synthetic.images), size=plain_size(sides))


def validation_score(bundle: Bundle, good_NHWC: np.ndarray, synthetic: SyntheticSet) -> float:
    """Return 0.8 × image AUROC + 0.2 × pixel average precision of a bundle as it is, each the mean over all defects.

    Both are taken per family and grade, whose number of images is their weight. `good_NHWC` is uint8 N×H×W×3.
    """
    good_N = [prediction.score for prediction in _predictions(bundle, good_NHWC)]
    scores, values, labels, weights = [], [], [], []
    rng, share = np.random.default_rng(0), min(1.0, NORMAL_PIXELS / synthetic.masks[0].size)
    for prediction, mask in zip(_predictions(bundle, synthetic.images), synthetic.masks, strict=True):
        defect = np.asarray(mask, dtype=bool).ravel()
        pixels = np.flatnonzero(defect | (rng.random(defect.size) < share))
        scores.append(prediction.score)
        values.append(prediction.anomaly_map.ravel()[pixels])
        labels.append(defect[pixels])
        weights.append(np.where(labels[-1], 1.0, 1 / share))  # how many pixels each one stands for
    groups = synthetic.family * (int(synthetic.grade.max()) + 1) + synthetic.grade
    total = 0.0
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        of_images = [*good_N, *(scores[member] for member in members)]
        auroc = image_auroc([0] * len(good_N) + [1] * len(members), of_images)
        parts = (np.concatenate([of[member] for member in members]) for of in (labels, values, weights))
        total += len(members) * (IMAGE_SHARE * auroc + (1 - IMAGE_SHARE) * average_precision(*parts))
    return total / len(groups)


def _predictions(bundle: Bundle, image_NHWC: np.ndarray) -> Iterator[Prediction]:
    step = max(1, _PIXELS_AT_ONCE // image_NHWC[0, ..., 0].size)
    for start in range(0, len(image_NHWC), step):
        yield from bundle.predict(image_NHWC[start : start + step], batch_size=step)


def _roi_of(bundle: Bundle) -> str | None:
    """Return the SHA-256 of the mask of the region of interest."""
    return bundle.provenance["identity"].get("roi")


def _trained_on(bundle: Bundle, which: str) -> set[str]:
    """Return the SHA-256 of each image that a bundle was trained on."""
    identity = bundle.provenance.get("identity")
    if not isinstance(identity, dict) or not identity.get("train"):
        raise NotComparable(f"{which} does not say which images it was trained on: it was made by an older msad")
    return {str(line).partition("  ")[0] for line in identity["train"]}
