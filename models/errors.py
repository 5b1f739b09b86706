"""The error of this package."""

from __future__ import annotations


class ModelError(ValueError):
    """An architecture, a loss, a scoring or a metric was asked for what it cannot do; the text says what to do."""
