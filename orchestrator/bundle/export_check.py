"""How far an exported file is from the bundle that it was made of, and whether that is near enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from msad.bundle.bundles import Bundle
from msad.bundle.prediction import Prediction
from msad.bundle.runtimes import Run
from msad.errors import ExportError

Answered = tuple[np.ndarray, list[Prediction]]
"""A batch, uint8 N×H×W×3, and the bundle's predictions of its images."""

TOLERANCE = 0.001
"""Largest difference between file and bundle, as a share of the range of the bundle's anomaly maps."""


@dataclass(frozen=True)
class Exported:
    """A written file, and how far it is from the bundle at most: `score` and `map` on the images it was checked on.

    Both are in the unit of the scores; `range` is the range of the anomaly maps there. `verdicts` counts the images of
    another verdict, which a network of fewer bits may have, and `also_in` has the same for every other runtime.
    """

    path: Path
    images: int
    score: float
    map: float
    range: float
    verdicts: int = 0
    also_in: dict[str, Exported] = field(default_factory=dict)


def check(
    bundle: Bundle,
    to: Path,
    answers: Sequence[Answered],
    run: Run,
    *,
    exact: bool = True,
    runtime: str = "",
) -> Exported:
    """Compare what a file gives with what the bundle has answered.

    Parameters
    ----------
    bundle, to
        The model, and the file that is to be written.
    answers
        Batches with the bundle's predictions of their images.
    run
        Runs the file.
    exact
        Whether it must agree within `TOLERANCE`, verdicts too; otherwise it needs only to give numbers.
    runtime
        Its name, for the error's text.

    Raises
    ------
    ExportError
        It does not.
    """
    maps = [one.anomaly_map for _, predictions in answers for one in predictions]
    spread = float(max(part.max() for part in maps) - min(part.min() for part in maps))
    scores, differences, verdicts = [0.0], [0.0], 0
    for batch, predictions in answers:
        for one, score, verdict, anomaly_map, mask in zip(predictions, *run(np.ascontiguousarray(batch)), strict=True):
            near = abs(one.score - bundle.threshold) <= TOLERANCE * spread
            other = bool(verdict) != one.is_anomalous and not near
            marked = np.array_equal(mask, anomaly_map > np.float32(bundle.pixel_threshold))
            verdicts += other
            scores.append(math.inf if other and exact else _distance(score, one.score))
            differences.append(_distance(anomaly_map, one.anomaly_map) if marked else math.inf)
    result = Exported(to, len(maps), max(scores), max(differences), spread, verdicts)
    worst = max(result.score, result.map)
    if worst > TOLERANCE * spread if exact else math.isinf(worst):
        allowed = f"{TOLERANCE:.1%} of the range is allowed" if exact else "what is no number is not allowed"
        raise ExportError(
            f"{to}: not written: {f'in {runtime} ' if runtime else ''}it would differ from the model by "
            f"{result.score:.3g} in a score and {result.map:.3g} in a map whose range is {spread:.3g}; {allowed}. "
            f"Try the other format ({'.pt2' if to.suffix == '.onnx' else '.onnx'})"
        )
    return result


def _distance(found: np.ndarray, expected: np.ndarray | float) -> float:
    """Return the largest difference; infinite where a value is not finite."""
    largest = float(np.abs(np.asarray(found, np.float64) - expected).max())
    return largest if math.isfinite(largest) else math.inf
