"""What kind of file a bundle is exported as: its sizes, its precision, the runtimes that it is checked in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from msad.bundle.onnx_precision import PRECISIONS
from msad.data_io.decode import height_width
from msad.data_io.shape import parse_size
from msad.errors import ConfigError

SIZES = ("images", "height", "width")
"""The names of the input's sizes that a file leaves open."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """What kind of file is written.

    Parameters
    ----------
    batch
        Images in a call; None: any number.
    size
        Of the photographs in pixels, as `msad.data_io.shape.parse_size` takes it; None: any.
    precision
        Of the network, one of `PRECISIONS`; but for `float32` in ONNX only.
    calibrate_on
        For `int8`: files of good images, or folders of them; the first 64 give the scales.
    also_in
        Run it in `openvino` too, beside onnxruntime.

    Raises
    ------
    ConfigError
        A value is out of range, or two do not go together.
    """

    batch: int | None = None
    size: int | str | None = None
    precision: str = "float32"
    calibrate_on: Sequence[Path] = ()
    also_in: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.size is not None:
            object.__setattr__(self, "size", parse_size(self.size))
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"a batch of {self.batch} images; it must be at least 1")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision is {self.precision!r}; it must be one of {', '.join(PRECISIONS)}")
        if (self.precision == "int8") != bool(self.calibrate_on):
            raise ConfigError("int8, and int8 alone, needs good training images for its scales: --calibrate-on")
        if unknown := set(self.also_in) - {"openvino"}:
            raise ConfigError(f"no runtime {min(unknown)!r} to check with; there is openvino")

    @property
    def photograph(self) -> tuple[int, int] | None:
        """Height and width of the only photographs that are taken."""
        return None if self.size is None else height_width(self.size)

    @property
    def open_sizes(self) -> dict[int, str]:
        """The sizes that are left open, by axis."""
        fixed = (self.batch, *(self.photograph or (None, None)))
        return {axis: name for axis, (name, size) in enumerate(zip(SIZES, fixed, strict=True)) if size is None}
