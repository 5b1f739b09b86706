"""Image files to arrays: every kind of file an inspection camera writes becomes uint8 RGB, or an error that names it.

Legend of shapes: H, W height and width of the image as it is looked at (after EXIF orientation).
"""

from __future__ import annotations

import io
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from msad.data_io.errors import DataError
from msad.data_io.wide import FULL, is_wide_colour, to_levels, wide_colour

# Only these decoders ever see a file: a dataset is untrusted input, and Pillow knows some fifty further formats.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
# What Pillow says of a file (a line scan of many pixels, an odd tag) beside our own words helps nobody: what cannot be
# read is refused in one sentence, and the rest reads well.
warnings.filterwarnings("ignore", module=r"PIL\.")
# Orientations 5 to 8 of the EXIF standard turn the image by a quarter, so that width and height change places.
_EXIF_ORIENTATION, _QUARTER_TURNS = 0x0112, (5, 6, 7, 8)
_SIXTEEN_BIT = 65535
Size = int | str | tuple[int, int]
"""Of an image in pixels: the side of a square, or height and width, as a pair or as text, `"416x160"`."""

MOST_BYTES = 2 << 30  # of a file: the most pixels that Pillow takes, in 16 bit colour with transparency, are 1.4 GB


@dataclass(frozen=True)
class Header:
    """What a file says about itself before any pixel is decoded.

    Its size in pixels as looked at, Pillow's mode, and whether it has more than 8 bits a channel.
    """

    width: int
    height: int
    mode: str
    wide: bool = False


@dataclass(frozen=True)
class Decoded:
    """An image file as it was read.

    Attributes
    ----------
    pixels : uint8 H×W×3, RGB.
    largest : the largest value of a file of more than 8 bits, before it was scaled; None for one of 8 bits.
    clipped : number of its pixels that were above the bit depth.
    pages : of the file, of which the first is read.
    """

    pixels: np.ndarray
    largest: int | None = None
    clipped: int = 0
    pages: int = 1


@dataclass(frozen=True)
class Mask:
    """A ground-truth mask: bool H×W, and whether its file says defect with a 1 where 255 is usual."""

    marked: np.ndarray
    of_ones: bool = False


def read_header(path: Path | str, content: bytes | None = None) -> Header:
    """Read size and mode of an image without decoding its pixels.

    Parameters
    ----------
    path : the file; also names it in errors.
    content : the file's bytes when the caller has them already; then the file is not opened.

    Raises
    ------
    DataError : the file cannot be read, is no PNG, JPEG, BMP, TIFF or WebP, or claims more pixels than memory should
        hold.
    """
    with _open(Path(path), content) as image:
        wide = image.mode.startswith("I") or is_wide_colour(image)  # before Pillow decodes a PNG to find its EXIF block
        try:
            # Pillow turns a TIFF by itself and says its size as turned.
            turned = image.format != "TIFF" and image.getexif().get(_EXIF_ORIENTATION) in _QUARTER_TURNS
        except Exception:  # A broken EXIF block leaves the pixels good, and Pillow raises many types on one.
            turned = False
        width, height = reversed(image.size) if turned else image.size
        return Header(width, height, image.mode, wide)


def decode(path: Path | str, content: bytes | None = None, bit_depth: int = FULL) -> np.ndarray:
    """Decode an image file to RGB: the pixels of `read_image`, uint8 array H×W×3 in 0..255."""
    return read_image(path, content, bit_depth).pixels


def read_image(path: Path | str, content: bytes | None = None, bit_depth: int = FULL) -> Decoded:
    """Decode an image file to RGB, and note what is worth saying of it.

    Grey becomes three equal channels; more than 8 bits a channel are scaled from the bit depth (`msad.data_io.wide`),
    so that two images stay comparable; a palette is looked up; transparency is composited on black, because the colour
    behind a transparent pixel is arbitrary; EXIF orientation is applied; of several frames or pages the first is taken.

    Parameters
    ----------
    path : the file; also names it in errors.
    content : the file's bytes when the caller has them already; then the file is not opened.
    bit_depth : bits that the camera fills, one of `msad.data_io.wide.BIT_DEPTHS`; of no effect on files of 8 bits.

    Raises
    ------
    DataError : the file cannot be read or decoded, is truncated, is of a kind whose range is unknown (32 bit), or
        claims more pixels than memory should hold.
    """
    path = Path(path)
    with _open(path, content) as image:
        pages = _pages(image)
        if is_wide_colour(image):
            values = wide_colour(lambda: _open(path, content), lambda opened: _loaded(opened, path))
            pixels, largest, clipped = _narrow_colour(values, bit_depth)
        else:
            pixels, largest, clipped = _to_rgb(_loaded(image, path), path, bit_depth)
    return Decoded(pixels, largest, clipped, pages)


def convert(image: Image.Image, name: str = "the image given", bit_depth: int = FULL) -> Decoded:
    """Turn an image that is in memory into what `read_image` would make of its file.

    Parameters
    ----------
    image : of any of Pillow's modes; read now if it was only opened.
    name : names the image in errors.
    bit_depth : as of `read_image`.

    Raises
    ------
    DataError : as `read_image`; 16 bit colour of another depth than 16, which Pillow holds cut to 8.
    """
    if bit_depth != FULL and is_wide_colour(image):
        raise DataError(
            f"{name}: Pillow cuts 16 bit colour to 8 bits, so its {bit_depth} bits cannot be read from it; give the "
            "file's path, or a uint16 array H×W×3"
        )
    return Decoded(*_to_rgb(_loaded(image, Path(name)), Path(name), bit_depth))


def convert_values(values: np.ndarray, bit_depth: int = FULL) -> Decoded:
    """Turn an array of more than 8 bits into what `read_image` would make of its file.

    Parameters
    ----------
    values : uint16 H×W (grey), H×W×3 (RGB) or H×W×4 (with transparency).
    bit_depth : as of `read_image`.
    """
    if values.ndim == 3:
        return Decoded(*_narrow_colour(values, bit_depth))
    levels, clipped = to_levels(values, bit_depth)
    return Decoded(np.repeat(levels[..., None], 3, axis=2), int(values.max()), clipped)


def decode_mask(path: Path | str, threshold: int = 127) -> np.ndarray:
    """Decode a ground-truth mask: `read_mask(...).marked`, bool H×W, True where the defect is."""
    return read_mask(path, threshold).marked


def read_mask(path: Path | str, threshold: int = 127) -> Mask:
    """Decode a ground-truth mask: above the threshold is defect for 8 bit and its 16 bit equivalent, nonzero for 1 bit.

    One that has no value above 1 is of zeros and ones: many tools write so, and no camera does.

    Parameters
    ----------
    path : the file; also names it in errors.
    threshold : 0..254; with 0 every value but 0 is defect, of a palette every index but 0, of 16 bit every value but 0.

    Raises
    ------
    DataError : as `read_image`.
    """
    path = Path(path)
    image = _load(path, None)
    if image.mode == "1":
        return Mask(np.array(image))
    wide = image.mode.startswith("I")
    if threshold == 0 and (wide or image.mode in ("P", "L")):
        return Mask(np.asarray(image) > 0)  # a palette's colours mean nothing here, nor do 16 bit levels
    levels = _to_rgb(image, path, FULL)[0].max(axis=2)
    values = np.asarray(image) if wide else levels
    if threshold and values.max() == 1:
        return Mask(values > 0, of_ones=True)
    return Mask(levels > threshold)


def height_width(size: Size) -> tuple[int, int]:
    """Return the height and width that a size means."""
    if isinstance(size, str):
        height, _, width = size.partition("x")
        return int(height), int(width or height)
    height, width = size if isinstance(size, tuple) else (size, size)
    return height, width


def resize(image: np.ndarray, size: Size) -> np.ndarray:
    """Resize an image, antialiased; the aspect ratio becomes that of the size.

    Filter: Pillow's BILINEAR, whose triangle widens with the reduction (antialiasing). It has no negative lobes: a
    sharper filter would draw halos along edges, and a detector of anomalies would learn them. Across first, then down,
    each rounded to whole grey levels: Pillow takes the order that is quicker, which depends on its version, and an
    exported model (`msad.models.detector`) has to see the same pixels.

    Parameters
    ----------
    image : uint8 H×W×3.
    size : of the result, each side at least 1 pixel.

    Returns
    -------
    uint8 array h×w×3 of that size.
    """
    height, width = height_width(size)
    if image.shape[:2] == (height, width):
        return image
    across = Image.fromarray(image).resize((width, len(image)), Image.Resampling.BILINEAR)
    return np.asarray(across.resize((width, height), Image.Resampling.BILINEAR))


def resize_mask(mask: np.ndarray, size: Size) -> np.ndarray:
    """Resize a mask by the nearest pixel, as the literature does.

    A defect finer than a pixel of the result can vanish.

    Parameters
    ----------
    mask : bool H×W.
    size : of the result, each side at least 1 pixel.

    Returns
    -------
    bool array h×w of that size.
    """
    height, width = height_width(size)
    if mask.shape == (height, width):
        return mask
    if not mask.any():
        return np.zeros((height, width), bool)
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))


def _open(path: Path, content: bytes | None) -> Image.Image:
    if content is None:
        refuse_strange_file(path)
    try:
        return Image.open(path if content is None else io.BytesIO(content), formats=FORMATS)
    except Exception as error:
        raise explained(path, error) from error


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
        raise explained(path, error) from error
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # A broken EXIF block leaves the pixels good.
        return image.copy()


def _to_rgb(image: Image.Image, path: Path, bit_depth: int) -> tuple[np.ndarray, int | None, int]:
    """Return a loaded image as uint8 H×W×3, its largest value if it has more than 8 bits, and how many were above."""
    if image.mode == "F":
        raise DataError(f"{path}: 32 bit floating-point images have no stated range; convert it to 8 or 16 bit")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > _SIXTEEN_BIT:
            raise DataError(
                f"{path}: grey values {values.min()}..{values.max()} do not fit 16 bit; convert it to 8 or 16 bit"
            )
        levels, clipped = to_levels(values, bit_depth)
        return np.repeat(levels[..., None], 3, axis=2), int(values.max()), clipped
    return _narrow(image), None, 0


def _narrow_colour(values: np.ndarray, bit_depth: int) -> tuple[np.ndarray, int, int]:
    """Return uint16 H×W×3 or H×W×4 as `_to_rgb` does."""
    levels, clipped = to_levels(values[..., :3], bit_depth)
    largest = int(values[..., :3].max())
    if values.shape[2] == 4:
        alpha = to_levels(values[..., 3:])[0]  # transparency has its own range: the whole of it
        levels = _narrow(Image.fromarray(np.concatenate([levels, alpha], axis=2)))
    return levels, largest, clipped


def _narrow(image: Image.Image) -> np.ndarray:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return np.asarray(image.convert("RGB"))


def _pages(image: Image.Image) -> int:
    """Count a file's pages; the further frame of a camera's MPO, a preview or a second eye, is none."""
    if image.format == "MPO":
        return 1
    try:
        return getattr(image, "n_frames", 1)
    except Exception:  # a damaged chain of pages; the first one may be whole
        return 1


def explained(path: Path, error: Exception) -> DataError:
    """One sentence for what went wrong with a file, and what to do; the same in a check and in a prediction."""
    match error:
        case FileNotFoundError():
            what = "no such file; was it moved or renamed?"
        case IsADirectoryError():
            what = "is a folder, not an image file"
        case PermissionError():
            what = "may not be read; change its permissions"
        case Image.DecompressionBombError():
            what = f"too large (more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels); crop or tile it first"
        case MemoryError():
            what = "needs more memory than there is; crop or tile it first"
        case Image.UnidentifiedImageError() if path.is_file() and not path.stat().st_size:
            what = "is empty (0 bytes); replace or remove it"
        case Image.UnidentifiedImageError():
            what = "cannot be decoded: not a PNG, JPEG, BMP, TIFF or WebP image; replace or remove it"
        case _:
            what = f"cannot be decoded, the file is damaged or truncated ({error}); replace or remove it"
    return DataError(f"{path}: {what}")
