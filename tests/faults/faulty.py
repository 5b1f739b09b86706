"""A detector that does what goes wrong on a cluster, for real, in the middle of an epoch.

Named by its path, `faulty:Faulty`, it is searched like any other; the fault is a parameter, so that a study can hold
all of them. With eight training images and two a step, an epoch has four steps.
"""

from __future__ import annotations

import os
import resource
import signal
import time
from pathlib import Path
from types import MappingProxyType

import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution
from torch import Tensor, nn

from msad.models.base import AnomalyModel

FAULTS = ("none", "nan", "memory", "hoard", "crash", "once", "wait", "hang")
STEP = {"crash": 2, "hoard": 2}  # of a fault: in the first epoch, so that it meets every attempt;
LATER = 10  # else in the third, when there is a checkpoint to go on from


class Faulty(AnomalyModel):
    """One convolution each way.

    `once` and `crash` kill the process, `hoard` takes memory until somebody else does, `wait` waits for a file.
    """

    loss_terms = ("l1",)
    default_loss_weights = MappingProxyType({"l1": 1.0})
    map_names = ("difference",)
    training_defaults = MappingProxyType({"epochs": 4, "batch_size": 2, "evaluate_every": 1})
    search_space = MappingProxyType(
        {"learning_rate": FloatDistribution(1e-4, 1e-2, log=True), "model/fault": CategoricalDistribution(FAULTS)}
    )

    def __init__(self, width: int = 4, fault: str = "none", pause: float = 0.0):
        super().__init__()
        self.fault, self.pause, self.steps = fault, pause, 0
        down, up = nn.Conv2d(3, width, 4, stride=2, padding=1), nn.ConvTranspose2d(width, 3, 4, stride=2, padding=1)
        self.network = nn.Sequential(down, nn.ReLU(), up, nn.Sigmoid())

    def _losses(self, clean: Tensor, corrupted: Tensor, mask: Tensor, terms: list[str]) -> dict[str, Tensor]:
        self.steps += 1
        time.sleep(self.pause)
        loss = (self.network(corrupted) - clean).abs().mean()
        if self.fault != "none" and self.steps == STEP.get(self.fault, LATER):
            loss = loss * getattr(self, f"_{self.fault}")()
        return {"l1": loss}

    def _maps(self, image: Tensor) -> dict[str, Tensor]:
        return {"difference": (self.network(image) - image).abs().mean(dim=1, keepdim=True)}

    def _nan(self) -> float:
        return float("nan")

    def _memory(self) -> float:
        """Ask for more than the process may have."""
        before = resource.getrlimit(resource.RLIMIT_AS)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 28), before[1]))
        try:
            return float(torch.ones(1 << 30).sum())
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)

    def _hoard(self) -> float:
        hoard = []
        while True:
            hoard.append(torch.ones(1 << 24))  # 64 MiB that are really used
            time.sleep(0.05)

    def _crash(self) -> float:
        os.kill(os.getpid(), signal.SIGKILL)
        return 1.0

    def _once(self) -> float:
        try:
            Path(os.environ["FAULTY_ONCE"]).touch(exist_ok=False)
        except FileExistsError:
            return 1.0
        return self._crash()

    def _wait(self) -> float:
        while not Path(os.environ["FAULTY_GO"]).exists():
            time.sleep(0.05)
        return 1.0

    def _hang(self) -> float:
        while True:
            time.sleep(1)
