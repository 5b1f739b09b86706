"""The C++ program of the documentation, built and run against onnxruntime's own library where its headers are.

Debian 13 and Ubuntu 25 have them in `libonnxruntime-dev`; $ONNXRUNTIME_INCLUDE names another folder, as `.ci/run` does.
The library is that of the Python package.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from msad.bundle.export import export

SOURCE = Path(__file__).parents[2] / "docs" / "examples" / "cpp" / "detect.cpp"
HEADER = "onnxruntime_cxx_api.h"


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The program, built here."""
    places = [Path(place) for place in (os.environ.get("ONNXRUNTIME_INCLUDE"), "/usr/include/onnxruntime") if place]
    include = next((place for place in places if (place / HEADER).is_file()), None)
    if include is None or shutil.which("g++") is None:
        pytest.skip("no g++ or no headers of onnxruntime: install them (Debian 13: apt install libonnxruntime-dev)")
    folder = tmp_path_factory.mktemp("cpp")
    for library in (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"):
        for name in ("libonnxruntime.so", "libonnxruntime.so.1"):  # as a program asks for it
            (folder / name).symlink_to(library)
    if not any(folder.iterdir()):
        pytest.skip("the package onnxruntime has no library for C++ here")
    built = folder / "detect"
    words = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", f"-isystem{include}", SOURCE, "-o", built]
    words += [f"-L{folder}", "-lonnxruntime", f"-Wl,-rpath,{folder}"]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return built


@pytest.fixture(scope="module")
def file(bundle, tmp_path_factory):
    return export(bundle, tmp_path_factory.mktemp("file") / "part.onnx").path


def test_program_says_of_a_photograph_what_the_bundle_says(program, file, bundle, demo, category, tmp_path):
    for path in (sorted((demo / category / "test").rglob("*.png")))[::6]:
        Image.open(path).convert("RGB").resize((70, 50)).save(tmp_path / "photograph.ppm")
        done = subprocess.run([program, file, tmp_path / "photograph.ppm"], capture_output=True, text=True, check=True)
        name, _, score, _, verdict, _, pixels = done.stdout.split()
        prediction = bundle.predict(np.asarray(Image.open(tmp_path / "photograph.ppm")))
        assert name == category and float(score) == pytest.approx(prediction.score, rel=1e-3)
        assert verdict == ("anomalous" if prediction.is_anomalous else "good")
        assert abs(int(pixels) - (prediction.anomaly_map > bundle.pixel_threshold).sum()) <= 2


def test_program_takes_another_threshold_and_says_what_is_wrong(program, file, demo, category, tmp_path):
    path = next((demo / category / "test" / "good").glob("*.png"))
    Image.open(path).convert("RGB").save(tmp_path / "photograph.ppm")
    for threshold, verdict in (("-100", "anomalous"), ("1e6", "good")):
        words = [program, file, tmp_path / "photograph.ppm", threshold]
        assert verdict in subprocess.run(words, capture_output=True, text=True, check=True).stdout
    for words, error in (([file, path], "no binary PPM"), ([tmp_path / "none.onnx", path], "none.onnx"), ([], "usage")):
        done = subprocess.run([program, *words], capture_output=True, text=True)
        assert done.returncode == 1 and error in done.stderr
