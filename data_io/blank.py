"""Whether masks mark anything, for datasets whose labels are nowhere else; each is opened once per node."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from msad.data_io.array_cache import cached_arrays
from msad.data_io.cache import file_states
from msad.data_io.decode import decode_mask
from msad.data_io.errors import DataError
from msad.data_io.parallel import map_in_threads


def marked(masks: Sequence[Path], directory: Path | str | None = None) -> list[bool]:
    """Whether each mask has a pixel above 0.

    Parameters
    ----------
    masks : files of masks.
    directory : the cache, which spares opening unchanged files again; None for `default_cache_dir()`.

    Raises
    ------
    DataError : files that cannot be read or decoded, all of them in one error.
    """
    masks = list(masks)
    if not masks:
        return []

    def build() -> dict[str, np.ndarray]:
        outcomes = list(map_in_threads(_marked_or_problem, masks))
        if problems := [outcome for outcome in outcomes if isinstance(outcome, str)]:
            raise DataError("\n".join(problems))
        return {"marked": np.array(outcomes, bool)}

    key = f"marked v1 {hashlib.sha256(repr(file_states(masks)).encode()).hexdigest()}"
    return cached_arrays(key, build, directory)["marked"].tolist()


def _marked_or_problem(path: Path) -> bool | str:
    try:
        return bool(decode_mask(path, threshold=0).any())
    except DataError as error:
        return str(error)
