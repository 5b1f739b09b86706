"""What is worth saying of image files that were read, collected: one sentence for all files that it is true of."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from msad.data_io.wide import FULL, smallest_depth


@dataclass
class ReadingRemarks:
    """Collects over the files of one command what their pixels do not show; see `msad.data_io.decode.Decoded`.

    Parameters
    ----------
    bit_depth : as which files of more than 8 bits are read.
    """

    bit_depth: int = FULL
    _clipped: dict[str, int] = field(default_factory=dict)
    _pages: dict[str, int] = field(default_factory=dict)
    _wide: int = 0
    _largest: int = 0

    def add(self, path: Path | str, largest: int | None, clipped: int, pages: int) -> None:
        """Note one file."""
        if clipped:
            self._clipped[str(path)] = clipped
        if pages > 1:
            self._pages[str(path)] = pages
        if largest is not None:
            self._wide, self._largest = self._wide + 1, max(self._largest, largest)

    def sentences(self) -> list[str]:
        """What there is to say, most important first; empty for files of which all is seen."""
        found = []
        depth = f"{self.bit_depth} bits, which the model reads"
        if self._clipped:
            path, pixels = next(iter(self._clipped.items()))
            found.append(
                f"{len(self._clipped):,} image(s) have values up to {self._largest}, above those of the {depth}: they "
                f"are clipped ({path} the first, {pixels:,} pixels)"
            )
        elif self._wide and (used := smallest_depth(self._largest)) < self.bit_depth:
            found.append(
                f"{self._wide:,} image(s) of more than 8 bits have no value above {self._largest}, as of {used} bits; "
                f"the model reads them as of {self.bit_depth}, so they are dark to it"
            )
        if self._pages:
            path, pages = next(iter(self._pages.items()))
            found.append(
                f"{len(self._pages):,} file(s) have more than one page, of which the first is read ({path} the first, "
                f"{pages} pages)"
            )
        return found
