"""Image files to arrays: every kind of file an inspection camera writes becomes uint8 RGB, or an error that names it.

Legend of shapes: H, W height and width of the image as it is looked at (after EXIF orientation).
"""

from __future__ import annotations

import io
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from data_io.errors import DataError

# Only these decoders ever see a file: a dataset is untrusted input, and Pillow knows some fifty further formats.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
# Orientations 5 to 8 of the EXIF standard turn the image by a quarter, so that width and height change places.
_EXIF_ORIENTATION, _QUARTER_TURNS = 0x0112, (5, 6, 7, 8)
_SIXTEEN_BIT = 65535
MOST_BYTES = 2 << 30  # of a file: the most pixels that Pillow takes, in 16 bit colour with transparency, are 1.4 GB


@dataclass(frozen=True)
class Header:
    """What a file says about itself before any pixel is decoded: size in pixels as looked at, and Pillow's mode."""

    width: int
    height: int
    mode: str


def read_header(path: Path | str, content: bytes | None = None) -> Header:
    """Read size and mode of an image without decoding its pixels.

    Parameters
    ----------
    path : the file; also names it in errors.
    content : the file's bytes when the caller has them already; then the file is not opened.

    Raises
    ------
    DataError : the file cannot be read, is no PNG, JPEG, BMP or TIFF, or claims more pixels than memory should hold.
    """
    with _open(Path(path), content) as image:
        try:
            # Pillow turns a TIFF by itself and says its size as turned.
            turned = image.format != "TIFF" and image.getexif().get(_EXIF_ORIENTATION) in _QUARTER_TURNS
        except Exception:  # A broken EXIF block leaves the pixels good, and Pillow raises many types on one.
            turned = False
        width, height = reversed(image.size) if turned else image.size
        return Header(width, height, image.mode)


def decode(path: Path | str, content: bytes | None = None) -> np.ndarray:
    """Decode an image file to RGB.

    Grey becomes three equal channels; 16 bit grey is scaled by the full 16 bit range (0..65535 to 0..255), so that two
    images stay comparable; a palette is looked up; transparency is composited on black, because the colour behind a
    transparent pixel is arbitrary; EXIF orientation is applied; of several frames the first is taken.

    Parameters
    ----------
    path : the file; also names it in errors.
    content : the file's bytes when the caller has them already; then the file is not opened.

    Returns
    -------
    uint8 array H×W×3 in 0..255, RGB.

    Raises
    ------
    DataError : the file cannot be read or decoded, is truncated, is of a kind whose range is unknown (32 bit), or
        claims more pixels than memory should hold.
    """
    path = Path(path)
    return np.asarray(_to_rgb(_load(path, content), path))


def convert(image: Image.Image, name: str = "the image given") -> np.ndarray:
    """Turn an image that is in memory into what `decode` would make of its file.

    Parameters
    ----------
    image : of any of Pillow's modes; read now if it was only opened.
    name : names the image in errors.

    Returns
    -------
    uint8 array H×W×3 in 0..255, RGB.

    Raises
    ------
    DataError : as `decode`.
    """
    return np.asarray(_to_rgb(_loaded(image, Path(name)), Path(name)))


def decode_mask(path: Path | str, threshold: int = 127) -> np.ndarray:
    """Decode a ground-truth mask: above the threshold is defect for 8 bit and its 16 bit equivalent, nonzero for 1 bit.

    Parameters
    ----------
    path : the file; also names it in errors.
    threshold : 0..254; with 0 every value but 0 is defect, of a palette every index but 0, of 16 bit every value but 0.

    Returns
    -------
    bool array H×W, True where the defect is.

    Raises
    ------
    DataError : as `decode`.
    """
    path = Path(path)
    image = _load(path, None)
    if image.mode == "1":
        return np.array(image)
    if threshold == 0 and (image.mode in ("P", "L") or image.mode.startswith("I")):
        return np.asarray(image) > 0  # a palette's colours mean nothing here, and scaling would lose low 16 bit values
    return np.asarray(_to_rgb(image, path)).max(axis=2) > threshold


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Resize an image to a square, antialiased; the aspect ratio is not kept.

    Filter: Pillow's BILINEAR, whose triangle widens with the reduction (antialiasing). It has no negative lobes: a
    sharper filter would draw halos along edges, and a detector of anomalies would learn them. Across first, then down,
    each rounded to whole grey levels: Pillow takes the order that is quicker, which depends on its version, and an
    exported model (`models.detector`) has to see the same pixels.

    Parameters
    ----------
    image : uint8 H×W×3.
    size : side of the result in pixels, at least 1.

    Returns
    -------
    uint8 array size×size×3.
    """
    if image.shape[:2] == (size, size):
        return image
    across = Image.fromarray(image).resize((size, len(image)), Image.Resampling.BILINEAR)
    return np.asarray(across.resize((size, size), Image.Resampling.BILINEAR))


def resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Resize a mask to a square by the nearest pixel, as the literature does.

    A defect finer than a pixel of that square can vanish.

    Parameters
    ----------
    mask : bool H×W.
    size : side of the result in pixels, at least 1.

    Returns
    -------
    bool array size×size.
    """
    if mask.shape == (size, size):
        return mask
    if not mask.any():
        return np.zeros((size, size), bool)
    return np.asarray(Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST))


def _open(path: Path, content: bytes | None) -> Image.Image:
    if content is None:
        refuse_strange_file(path)
    try:
        return Image.open(path if content is None else io.BytesIO(content), formats=FORMATS)
    except Exception as error:
        raise _explained(path, error) from error


def refuse_strange_file(path: Path) -> None:
    """Refuse what reading would hang on or fill memory with: a pipe, a device, a file larger than any image.

    Raises
    ------
    DataError : as said; a file that does not exist is left to the one who opens it.
    """
    try:
        state = path.stat()
    except OSError:
        return
    if not (stat.S_ISREG(state.st_mode) or stat.S_ISDIR(state.st_mode)):
        raise DataError(f"{path}: a pipe or a device, not an image file; remove it")
    if state.st_size > MOST_BYTES:
        raise DataError(f"{path}: too large ({state.st_size:,} bytes, {MOST_BYTES:,} at most); crop or tile it first")


def _load(path: Path, content: bytes | None) -> Image.Image:
    with _open(path, content) as image:
        return _loaded(image, path)


def _loaded(image: Image.Image, path: Path) -> Image.Image:
    try:
        image.load()
    except Exception as error:  # Pillow's decoders raise a dozen types on broken bytes; every one means the same.
        raise _explained(path, error) from error
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # A broken EXIF block leaves the pixels good.
        return image.copy()


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode == "F":
        raise DataError(f"{path}: 32 bit floating-point images have no stated range; convert it to 8 or 16 bit")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > _SIXTEEN_BIT:
            raise DataError(
                f"{path}: grey values {values.min()}..{values.max()} do not fit 16 bit; convert it to 8 or 16 bit"
            )
        grey = (values * 255 + _SIXTEEN_BIT // 2) // _SIXTEEN_BIT
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    return image.convert("RGB")


def _explained(path: Path, error: Exception) -> DataError:
    """One sentence for what went wrong with a file, and what to do about it."""
    match error:
        case FileNotFoundError():
            what = "no such file; was it moved or renamed?"
        case IsADirectoryError():
            what = "is a folder, not an image file"
        case PermissionError():
            what = "may not be read; change its permissions"
        case Image.DecompressionBombError():
            what = f"too large ({error}); crop or tile it first"
        case MemoryError():
            what = "needs more memory than there is; crop or tile it first"
        case Image.UnidentifiedImageError():
            what = "cannot be decoded: not a PNG, JPEG, BMP or TIFF image; replace or remove it"
        case _:
            what = f"cannot be decoded, the file is damaged or truncated ({error}); replace or remove it"
    return DataError(f"{path}: {what}")
