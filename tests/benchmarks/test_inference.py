"""The benchmark of inference runs small, and what it prints adds up."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINE = re.compile(
    r"(?P<name>\S.*?)\s+(?P<ms>[\d.]+)\s+(?P<low>[\d.]+)\s+[\d,]+\s+[\d.]+\s+(?P<runs>\d+)\s+(?P<ratio>[\d.]+)"
)


def test_inference_prints_every_way_with_its_ratio_and_difference(tmp_path):
    file = tmp_path / "inference.txt"
    small = "--architectures multiscale --batches 1 2 --image-size 32 --repeats 2 --seconds 0 --threads 1 --device cpu"
    command = [sys.executable, ROOT / "benchmarks/inference.py", *small.split(), "--no-export", "--output", file]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert file.read_text() == printed
    titles = [line.split("  ")[0] for line in printed.splitlines() if "median ms" in line]
    assert titles == ["multiscale, batch 1", "multiscale, batch 2"]
    rows = [match.groupdict() for match in map(LINE.match, printed.splitlines()) if match]
    plain = [row for row in rows if row["name"] == "scoring, plain"]
    assert [row["ratio"] for row in plain] == ["1.00", "1.00"]
    for ways in ("Bundle.predict, arrays", "Bundle.predict, photographs", "Bundle.predict, files"):
        assert sum(row["name"] == ways for row in rows) == 2
    assert all(float(row["ms"]) >= float(row["low"]) > 0 and int(row["runs"]) == 2 for row in rows)
    [*differences] = re.findall(r"channels first.*?([\d.e+-]+) ([\d.e+-]+)$", printed, re.MULTILINE)
    assert len(differences) == 2 and all(float(part) < 1e-4 for pair in differences for part in pair)
