"""The errors of this package."""

from __future__ import annotations


class DataError(ValueError):
    """An image, a mask or a dataset folder is wrong; the text names the path and says what to do."""


class NoTestImages(DataError):
    """A category has good images to learn from and none to measure on."""
