"""How `mlflow.pyfunc.load_model` opens a logged bundle (MLflow's `loader_module`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd


class PyfuncModel:
    """Scores images: a table with a column `path`, or an array uint8 H×W×3 or N×H×W×3."""

    def __init__(self, folder: str) -> None:
        from orchestrator.bundles import Bundle

        self.bundle = Bundle.load(Path(folder))

    def predict(self, model_input: pd.DataFrame | np.ndarray, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return a row per image: `score`, `threshold` and `is_anomalous`."""
        if isinstance(model_input, pd.DataFrame):
            if "path" not in model_input:
                raise ValueError(f"expected a column 'path' with image files, found {list(model_input.columns)}")
            images: list[Any] = [Path(path) for path in model_input["path"]]
        else:
            images = list(model_input) if np.ndim(model_input) == 4 else [model_input]
        predictions = self.bundle.predict(images)
        return pd.DataFrame(
            {
                "score": [p.score for p in predictions],
                "threshold": self.bundle.threshold,
                "is_anomalous": [p.is_anomalous for p in predictions],
            }
        )


def _load_pyfunc(path: str) -> PyfuncModel:
    return PyfuncModel(path)
