"""One image with what a layout knows of it by names alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from msad.data_io.markings import Marking

GOOD = "good"


@dataclass(frozen=True)
class Sample:
    """One test image: its type of defect ("good" for none) and its ground truth.

    `mask_path` is a file, a folder of files whose union is the mask, or None: good, or no mask there. `marking` says
    how the file is read; None: as a mask, by the layout's threshold.
    """

    path: Path
    defect_type: str = GOOD
    mask_path: Path | None = None
    marking: Marking | None = None

    @property
    def label(self) -> int:
        """0 good, 1 defective."""
        return int(self.defect_type != GOOD)
