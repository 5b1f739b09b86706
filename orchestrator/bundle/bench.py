"""How long a model takes on this machine, and how many images it scores in a second: a bundle, or an exported file.

Three things are timed, each with all that is before it: the network with its scoring, on images of its own size that
are in memory; resizing as well, on photographs in memory, whose maps come back at their own size; and reading as well,
from files. Files are read once before, so the system may have them in memory.
"""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from msad.bundle.bundles import Bundle
from msad.bundle.export_images import images_in
from msad.bundle.exported_model import ExportedModel
from msad.data_io.decode import decode, read_header, resize
from msad.data_io.parallel import map_in_threads
from msad.data_io.photographs import load_photograph
from msad.errors import ConfigError

STAGES = ("network and scoring", "with resizing", "with resizing and reading")
FEWEST, WARM_UP = 10, 3  # calls that are timed at least, and that are not
_READ = 64  # images at most


@dataclass(frozen=True)
class Timing:
    """One stage at one batch size: the median and the 95th percentile of a call in ms, and images per second."""

    stage: str
    batch: int
    median_ms: float
    slow_ms: float
    per_second: float


@dataclass(frozen=True)
class Bench:
    """What was timed: the model in words, its image size and device, the photographs' height and width, the timings."""

    model: str
    image_size: int | str
    device: str
    photograph: tuple[int, int]
    timings: list[Timing]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return asdict(self)


def bench(
    model: Bundle | ExportedModel,
    images: Sequence[Path] = (),
    batches: Sequence[int] = (1, 16),
    seconds: float = 2.0,
    threads: int | None = None,
) -> Bench:
    """Time a model.

    Parameters
    ----------
    model
        On the device that it is to be timed on.
    images
        Image files, or folders of them; those of the first one's size are used, up to 64. By default a photograph of
        600 × 400 pixels, or of the size that a file takes.
    batches
        Images in a call; a file of a fixed batch has that one alone.
    seconds
        To time each stage at each batch size at least; it is called ten times at least.
    threads
        Of torch, for a bundle and a `.pt2` file; an ONNX file is opened with its own.

    Raises
    ------
    ConfigError
        There is no image, or none of a size that the file takes.
    """
    if threads:
        torch.set_num_threads(threads)
    fixed = isinstance(model, ExportedModel) and model.batch
    with tempfile.TemporaryDirectory() as folder:
        files = _files(images, model, Path(folder))
        photographs = [decode(file, bit_depth=model.job.bit_depth) for file in files]
        timings = [
            _time(stage, batch, work, seconds)
            for batch in ([fixed] if fixed else batches)
            for stage, work in _stages(model, files, photographs, batch)
        ]
    return Bench(_words(model), model.job.image_size, _device(model), photographs[0].shape[:2], timings)


def _stages(
    model: Bundle | ExportedModel, files: Sequence[Path], photographs: Sequence[np.ndarray], batch: int
) -> Iterator[tuple[str, Callable[[], object]]]:
    own = [photographs[index % len(photographs)] for index in range(batch)]
    paths = [files[index % len(files)] for index in range(batch)]
    if isinstance(model, Bundle) or model.takes_its_own_size:
        small = np.stack([resize(image, model.job.sides) for image in own])
        yield STAGES[0], lambda: model.score_images(small)
    if isinstance(model, Bundle):
        yield STAGES[1], lambda: model.predict(own, batch_size=batch)
        yield STAGES[2], lambda: model.predict(paths, batch_size=batch)
    else:
        together, read = np.stack(own), partial(decode, bit_depth=model.job.bit_depth)
        yield STAGES[1], lambda: model.score_images(together)
        yield STAGES[2], lambda: model.score_images(np.stack([*map_in_threads(read, paths)]))


def _time(stage: str, batch: int, work: Callable[[], object], seconds: float) -> Timing:
    for _ in range(WARM_UP):
        work()
    took: list[float] = []
    while len(took) < FEWEST or sum(took) < seconds:
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    middle, slow = statistics.median(took), float(np.quantile(took, 0.95))
    return Timing(stage, batch, 1000 * middle, 1000 * slow, batch / middle)


def _files(images: Sequence[Path], model: Bundle | ExportedModel, folder: Path) -> list[Path]:
    wanted = model.photograph if isinstance(model, ExportedModel) else None
    if not images:
        photograph = load_photograph("coffee.png")
        file = folder / "coffee.png"
        Image.fromarray(resize(photograph, wanted) if wanted else photograph).save(file)
        return [file]
    files = images_in(images)
    headers = {file: read_header(file) for file in files}
    sizes = {file: (header.height, header.width) for file, header in headers.items()}
    size = wanted or sizes[files[0]]
    alike = [file for file in files if sizes[file] == size]
    if not alike:
        high, wide = size
        raise ConfigError(f"none of the {len(files)} images has {high}x{wide} pixels, the size that the file takes")
    return alike[:_READ]


def _words(model: Bundle | ExportedModel) -> str:
    made = f"{model.job.category}, {model.job.architecture}"
    if isinstance(model, Bundle):
        return made
    return f"{made}, {model.metadata['precision']} in {'onnxruntime' if model.path.suffix == '.onnx' else 'torch'}"


def _device(model: Bundle | ExportedModel) -> str:
    device = torch.device(model.device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device) if torch.cuda.is_available() else "CUDA"
    in_onnx = isinstance(model, ExportedModel) and model.path.suffix == ".onnx"
    threads = (model.threads or "all") if in_onnx else torch.get_num_threads()
    return f"{platform.machine()} CPU, {threads} thread{'' if threads == 1 else 's'}"
