"""The benchmarks that read models which `quality.py` kept run small on the demo's images."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.benchmarks.test_quality import ROOT, quality


@pytest.fixture(scope="module")
def kept(demo, category, tmp_path_factory):
    """The folder of one model and of the cache that it was trained from."""
    folder = tmp_path_factory.mktemp("kept")
    found = quality(
        demo, folder, "--categories", category, "--families", "feature_memory", "--bundles", folder / "bundles"
    )
    assert found.returncode == 0, found.stderr
    return folder


def run(name, demo, kept, *words):
    command = [sys.executable, ROOT / "benchmarks" / name, "--root", demo, "--cache", kept / "cache", "--threads", "1"]
    found = subprocess.run([*command, *words], check=False, capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.mark.slow
def test_nuisances_are_told_change_by_change(demo, kept):
    printed = run("nuisances.py", demo, kept, "--bundles", kept / "bundles")
    assert all(f" {change} " in printed for change in ("noise", "shift", "blur"))


@pytest.mark.slow
def test_choice_has_a_row_for_each_model_and_one_of_means(demo, kept, category):
    printed = run("choice.py", demo, kept, "--bundles", kept / "bundles")
    assert "rho" in printed and printed.count(f" {category} ") >= 2


@pytest.mark.slow
def test_known_defects_have_a_row_for_each_number_of_them(demo, kept, category):
    words = ("--categories", category, "--seeds", "1", "--draws", "1", "--image-size", "64")
    printed = run("known_defects.py", demo, kept, *words)
    assert printed.count(category) >= 2
