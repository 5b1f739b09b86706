"""The benchmark of detection quality runs small on the demo's images."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def quality(demo, tmp_path, *words):
    command = [sys.executable, ROOT / "benchmarks/quality.py", "--root", demo, "--image-size", "64", "--threads", "1"]
    return subprocess.run(
        [*command, "--cache", tmp_path / "cache", *words], check=False, capture_output=True, text=True, cwd=ROOT
    )


def test_quality_goes_on_without_a_family_whose_weights_cannot_be_had(demo, category, tmp_path):
    words = ("--categories", category, "--families", "feature_memory,baseline", "--epochs", "1", "--set")
    settings = ("model/backbone=resnet19", "model/base_width=4", "model/depth=2")
    found = quality(demo, tmp_path, "--output", tmp_path / "out.txt", *words, *settings)
    assert found.returncode == 0, found.stderr
    table, missing = (tmp_path / "out.txt").read_text().split("\n\n")[1:]
    assert len(table.splitlines()) == 2 and " baseline " in table
    assert missing.startswith(f"{category}, feature_memory, seed 0: not measured: unknown backbone 'resnet19'")


@pytest.mark.slow
def test_ablations_have_a_row_for_each_part_and_each_map(demo, category, tmp_path):
    words = ("--categories", category, "--families", "feature_ensemble", "--epochs", "1", "--ablations")
    settings = ("--set", "model/width=16", "model/rows=100")
    found = quality(demo, tmp_path, "--output", tmp_path / "out.txt", *words, *settings)
    assert found.returncode == 0, found.stderr
    table = (tmp_path / "out.txt").read_text().split("\n\n")[1]
    for row in ("no corruption", "no stride 32", "light kept", "not straightened", "no mask map", "cosine map only"):
        assert row in table
    assert "scoring chosen by synthetic defects" in table
    assert "square images" not in table and "no gates" not in table  # the demo's are square, the family has no skips


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--families", "feature_memoir"), "unknown architecture 'feature_memoir'; did you mean 'feature_memory'"),
        (("--families", "baseline", "--set", "model/backbone=resnet18"), "unknown parameter 'model/backbone'"),
    ],
)
def test_quality_refuses_before_it_trains(demo, tmp_path, words, message):
    found = quality(demo, tmp_path, *words)
    assert found.returncode == 2 and message in found.stderr and not found.stdout


def test_peer_is_scored_as_ours_and_by_its_own_score_on_our_backbone(demo, category, tmp_path):
    pytest.importorskip("anomalib", reason="anomalib is not installed")
    words = ("--categories", category, "--families", "anomalib:Patchcore", "--output", tmp_path / "out.txt")
    found = quality(demo, tmp_path, *words)
    assert found.returncode == 0, found.stderr
    rows = (tmp_path / "out.txt").read_text().split("\n\n")[1].splitlines()
    assert "anomalib:Patchcore, own score" in rows[2] and "σ0 own none" in rows[2]
    assert len(rows) == 3 and "random weights" not in rows[1]
