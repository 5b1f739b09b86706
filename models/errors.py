"""The error of this package."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ModelError(ValueError):
    """An architecture, a loss, a scoring or a metric was asked for what it cannot do; the text says what to do."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of a sentence: the closest known word, or all of them where none is close."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known) or 'none'}"
