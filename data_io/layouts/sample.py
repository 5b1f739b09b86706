"""One image with what a layout knows of it by names alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

GOOD = "good"


@dataclass(frozen=True)
class Sample:
    """One test image: its type of defect ("good" for none) and its ground truth.

    `mask_path` is a file, a folder of files whose union is the mask, or None: good, or no mask there.
    """

    path: Path
    defect_type: str = GOOD
    mask_path: Path | None = None

    @property
    def label(self) -> int:
        """0 good, 1 defective."""
        return int(self.defect_type != GOOD)
