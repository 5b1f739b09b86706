"""Suspects among the good images, as a table and as text for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from msad.training.suspects import Suspects


def suspects_table(found: Sequence[Suspects]) -> pd.DataFrame:
    """Return a row per image: `category`, `rank` from 1, `deviations`, `stands_out`, `path`; most unusual first."""
    rows = [
        (one.category, rank, float(far), bool(out), str(path))
        for one in found
        for rank, (path, far, out) in enumerate(zip(one.paths, one.deviations, one.stands_out, strict=True), 1)
    ]
    return pd.DataFrame(rows, columns=["category", "rank", "deviations", "stands_out", "path"])


def format_suspects(found: Sequence[Suspects], root: Path, top: int) -> str:
    """List the first images of each category, those that stand out with a star; paths are below the root."""
    lines = []
    for one in found:
        count = int(one.stands_out.sum())
        lines.append(
            f"{one.category}: {len(one.paths)} good images, {count or 'none'} of them stand{'s' * (count < 2)} out"
        )
        for rank, (path, far) in enumerate(zip(one.paths[:top], one.deviations, strict=False), 1):
            star = "*" if one.stands_out[rank - 1] else " "
            lines.append(f"{rank:5}  {far:6.1f} {star} {path.relative_to(root)}")
        lines.append("")
    lines.append(
        "Deviations from the usual image; *: farther than good images are. Look at them; move what is not good."
    )
    return "\n".join(lines)
