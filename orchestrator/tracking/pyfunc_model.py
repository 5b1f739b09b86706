"""A logged bundle as MLflow opens and serves it (its `loader_module`): image files in, scores out.

A request carries images as files, PNG or JPEG or whatever `msad predict` reads, in base64 as JSON needs it; the server
decodes that before it gets here.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image

from msad.data_io.decode import decode
from msad.data_io.photographs import load_textures
from msad.models.regions import FIGURES

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

    from msad.bundle.bundles import Bundle

_EXAMPLE_SIDE = 32  # pixels: the example is to be read, in a request of one screen


class PyfuncModel:
    """Scores the rows of a table: a column `image` with image files as bytes, or `path` with files on this machine."""

    def __init__(self, folder: str) -> None:
        from msad.bundle.bundles import Bundle

        self.bundle = Bundle.load(Path(folder))

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return a row per image: `score`, `threshold`, `is_anomalous` and `regions`, the largest first.

        Raises
        ------
        ValueError
            A row has neither an image nor a path.
        msad.data_io.errors.DataError
            An image cannot be decoded.
        """
        depth = self.bundle.job.bit_depth
        rows = model_input.reset_index().iterrows()
        predictions = self.bundle.predict([_image(row, index, depth) for index, row in rows])
        return pd.DataFrame(
            {
                "score": [p.score for p in predictions],
                "threshold": self.bundle.threshold,
                "is_anomalous": [p.is_anomalous for p in predictions],
                "regions": [[region.to_dict() for region in p.regions()] for p in predictions],
            }
        )

    def get_raw_model(self) -> Bundle:
        """Return the bundle, whose `predict` takes arrays too and gives anomaly maps."""
        return self.bundle


def signature() -> ModelSignature:
    """Return what goes in and comes out, as MLflow checks and shows it."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import Array, DataType, Object, Property

    inputs = [ColSpec("binary", "image", required=False), ColSpec("string", "path", required=False)]
    kinds = dict.fromkeys(FIGURES, DataType.long) | dict.fromkeys(("peak", "mean"), DataType.double)
    regions = Array(Object([Property(name, kind) for name, kind in kinds.items()]))
    outputs = [ColSpec("double", "score"), ColSpec("double", "threshold"), ColSpec("boolean", "is_anomalous")]
    outputs.append(ColSpec(regions, "regions"))
    return ModelSignature(Schema(inputs), Schema(outputs))


def input_example() -> pd.DataFrame:
    """Return a table with one small photograph, to show the form."""
    file = io.BytesIO()
    Image.fromarray(load_textures(_EXAMPLE_SIDE)[0]).save(file, "PNG")
    return pd.DataFrame({"image": [file.getvalue()]})


def _image(row: pd.Series, index: int, bit_depth: int) -> np.ndarray:
    if isinstance(image := row.get("image"), bytes):
        return decode(f"the image of row {index}", image, bit_depth)
    if isinstance(path := row.get("path"), str):
        return decode(path, bit_depth=bit_depth)
    raise ValueError(
        f"row {index} has neither an `image` (the bytes of a PNG or JPEG file; base64 in JSON) nor a `path` (a file on "
        "this machine)"
    )


def _load_pyfunc(path: str) -> PyfuncModel:
    return PyfuncModel(path)
