"""Images as people and programs have them, on their way into a network; and anomaly maps on their way back.

Shapes: B images, H×W pixels; `image_BCHW` is float32 RGB in [0, 1].
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from msad.data_io.decode import Decoded, convert, convert_values, read_image, resize
from msad.data_io.errors import DataError
from msad.data_io.parallel import map_in_threads
from msad.data_io.remarks import ReadingRemarks
from msad.data_io.wide import FULL
from msad.models.detector import resized
from msad.training.cuda_graphs import unrecorded

_RESIZED_AT_ONCE = 1 << 24  # pixels of photographs, in float64 on the GPU: 400 MB

ImageLike = np.ndarray | Image.Image | str | Path


def to_network(
    images: Sequence[ImageLike], sides: tuple[int, int], device: torch.device, remarks: ReadingRemarks
) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """Decode and resize images as those of the training were; return `image_BCHW` and each one's own height and width.

    `sides` are the network's height and width. `remarks` states the bit depth, and is told what the pixels do not show.

    Raises
    ------
    DataError
        A file cannot be decoded, or an array is of another kind than `Bundle.predict` takes.
    """

    def read(image: ImageLike) -> tuple[Decoded, np.ndarray]:
        decoded = _read(image, remarks.bit_depth)
        return decoded, decoded.pixels if device.type == "cuda" else resize(decoded.pixels, sides)

    pairs = _in_threads(read, images, sides)
    for index, (image, (decoded, _)) in enumerate(zip(images, pairs, strict=True)):
        name = image if isinstance(image, (str, Path)) else f"image {index}"
        remarks.add(name, decoded.largest, decoded.clipped, decoded.pages)
    sizes = [decoded.pixels.shape[:2] for decoded, _ in pairs]
    arrays = [array for _, array in pairs]
    if device.type == "cuda":  # which resizes by itself, and is sent the bytes as they are
        return _resized_there(arrays, sides, device), sizes
    return to_tensor(np.stack(arrays)), sizes


def to_tensor(images: np.ndarray, device: torch.device | None = None) -> torch.Tensor:
    """Turn uint8 N×H×W×3 into float32 `image_BCHW` in [0, 1], on a device, to which the bytes are copied."""
    if device is not None and device.type == "cuda":
        return _sent(images, device).permute(0, 3, 1, 2).float().div_(255)
    return torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2).div_(255).to(device)


def fit_map(map_1HW: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """Resize an anomaly map to (height, width), bilinearly and antialiased where it shrinks; float32 height×width."""
    return fit_maps(map_1HW[None], [size])[0]


def fit_maps(map_B1HW: torch.Tensor, sizes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Resize each map to its (height, width) as `fit_map` does, those of one size together, on the device they are on.

    The results are arrays of their own: to keep one does not keep the others.
    """
    fitted: list[np.ndarray] = [None] * len(sizes)
    for size in dict.fromkeys(map(tuple, sizes)):
        index = [position for position, other in enumerate(sizes) if tuple(other) == size]
        alike_B1HW = (map_B1HW if len(index) == len(sizes) else map_B1HW[index]).float()
        if size != alike_B1HW.shape[-2:]:
            alike_B1HW = F.interpolate(alike_B1HW, size=size, mode="bilinear", antialias=True)
        for position, anomaly_map in zip(index, alike_B1HW[:, 0], strict=True):
            fitted[position] = anomaly_map.cpu().numpy() if anomaly_map.is_cuda else anomaly_map.numpy().copy()
    return fitted


def to_array(image: ImageLike, bit_depth: int = FULL) -> np.ndarray:
    """Return an image as uint8 H×W×3; of more than 8 bits as many are taken as `bit_depth` says."""
    return _read(image, bit_depth).pixels


def _read(image: ImageLike, bit_depth: int) -> Decoded:
    if isinstance(image, (str, Path)):
        return read_image(image, bit_depth=bit_depth)
    if isinstance(image, Image.Image):
        return convert(image, bit_depth=bit_depth)
    if isinstance(image, np.ndarray) and image.size:
        colour = image.ndim == 3 and image.shape[2] in (3, 4)
        if image.dtype == np.uint16 and (image.ndim == 2 or colour):
            return convert_values(image, bit_depth)
        if image.dtype == np.uint8 and colour and image.shape[2] == 3:
            return Decoded(image)
        if image.dtype == np.uint8 and (image.ndim == 2 or colour):
            return convert(Image.fromarray(np.ascontiguousarray(image)))
    kind = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise DataError(
        "an image must be a path, a PIL image or an array: uint8 H×W×3 in RGB, H×W×4 with transparency or H×W in grey, "
        f"or uint16 of these shapes; not {kind}"
    )


def _in_threads(read: Callable[[ImageLike], Any], images: Sequence[ImageLike], sides: tuple[int, int]) -> list[Any]:
    """Call `read` for every image; in threads where several of them are to be decoded or resized."""
    ready = (*sides, 3)
    work = len(images) > 1 and any(getattr(image, "shape", None) != ready for image in images)
    return list(map_in_threads(read, images)) if work else [read(image) for image in images]


def _resized_there(arrays: Sequence[np.ndarray], sides: tuple[int, int], device: torch.device) -> torch.Tensor:
    """Return `image_BCHW` of uint8 images of any sizes, those of one size resized together on a GPU."""
    parts = []
    for (height, width, _), group in itertools.groupby(arrays, key=np.shape):
        alike, at_once = list(group), max(1, _RESIZED_AT_ONCE // (height * width))
        for first in range(0, len(alike), at_once):
            parts.append(resized(_sent(alike[first : first + at_once], device), sides))
    return torch.cat(parts)


def _sent(images: Sequence[np.ndarray], device: torch.device) -> torch.Tensor:
    """Return uint8 images of one size as one tensor on a GPU, by way of memory that it reads while the host goes on."""
    with unrecorded():  # another thread may record the scoring of another model
        pinned = torch.empty((len(images), *images[0].shape), dtype=torch.uint8, pin_memory=True)
    np.stack(images, out=pinned.numpy())
    return pinned.to(device, non_blocking=True)
