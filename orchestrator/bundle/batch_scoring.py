"""Images of a model's own size through network and scorer: as many at once as fit, repeated by itself on a GPU.

Shapes: B images, H×W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from msad.errors import ConfigError, first_line
from msad.models.base import AnomalyModel, SelfTraining
from msad.models.scoring import Scorer
from msad.models.tiling import Tiled
from msad.training.cuda_graphs import ReplayedScoring

_PIXELS_AT_ONCE = 1 << 22  # 64 images of 256 pixels, one of 2048


def find_device(name: str | torch.device | None) -> torch.device:
    """Return the device of a name; of None the GPU if there is one, else the CPU.

    Raises
    ------
    ConfigError
        There is no such device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        raise ConfigError(f"device {name!r} cannot be used: {first_line(error)}") from error
    return device


class BatchScoring:
    """Scores batches of any length with one network and one scorer, wherever the network's weights are.

    On a GPU the kernels are recorded and replayed (`msad.training.cuda_graphs`), except those of models that are slow
    by nature or that nobody here wrote.
    """

    def __init__(self, model: AnomalyModel, scorer: Scorer) -> None:
        self._model, self._scorer = model, scorer
        recordable = not isinstance(model, SelfTraining | Tiled)
        self._score_on_gpu = ReplayedScoring(self._score, model) if recordable else self._score

    def belongs_to(self, model: AnomalyModel, scorer: Scorer) -> bool:
        """Say whether it scores with these two."""
        return self._model is model and self._scorer is scorer

    @torch.inference_mode()
    def __call__(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return `map_B1HW` and `score_B` of float32 RGB in [0, 1], which may be on any device, on the network's."""
        device = next(self._model.parameters()).device
        at_once = max(1, _PIXELS_AT_ONCE // (image_BCHW.shape[-2] * image_BCHW.shape[-1]))
        score = self._score_on_gpu if device.type == "cuda" else self._score
        parts = [score(part.to(device)) for part in image_BCHW.split(at_once)]
        if len(parts) == 1:
            return parts[0]
        return torch.cat([map_B1HW for map_B1HW, _ in parts]), torch.cat([score_B for _, score_B in parts])

    def _score(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        return self._scorer(self._model.anomaly_maps(image_BCHW))
