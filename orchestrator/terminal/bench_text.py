"""Timings as text for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from msad.bundle.bench import Bench


def format_bench(result: Bench) -> str:
    """Lay timings out: a row per stage, latency and throughput for each batch size."""
    batches = list(dict.fromkeys(one.batch for one in result.timings))
    stages = list(dict.fromkeys(one.stage for one in result.timings))
    known = {(one.stage, one.batch): one for one in result.timings}
    high, wide = result.photograph
    lines = [
        f"{result.model}, at {result.image_size} pixels, on {result.device}; photographs of {high}x{wide} pixels",
        "",
        " " * 25 + "".join(f"{f'batch of {batch}':>32}" for batch in batches),
        " " * 25 + "".join(f"{'ms':>10}{'95 %':>9}{'images/s':>13}" for _ in batches),
    ]
    for stage in stages:
        cells = (known[stage, batch] for batch in batches)
        figures = "".join(f"{one.median_ms:>10.1f}{one.slow_ms:>9.1f}{one.per_second:>13,.1f}" for one in cells)
        lines.append(f"{stage:<25}{figures}")
    lines += ["", "ms: the median of a call, and its 95th percentile"]
    return "\n".join(lines)
