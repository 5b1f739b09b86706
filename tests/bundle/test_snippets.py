"""The code that the pages show for a line computer sees, of every kind of file, what `msad predict` sees."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msad.bundle.export import export
from msad.bundle.predict import predict_folder
from msad.data_io.decode import decode
from tests.readme import BLOCK, REPOSITORY

PAGES = {name: (REPOSITORY / name).read_text() for name in ("README.md", "docs/export.md")}
SHOWN = "demo/gear/test/stain/000.png"


def blocks(page: str, having: str) -> list[str]:
    return [block["text"] for block in BLOCK.finditer(PAGES[page]) if having in block["text"]]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """The folder of the documented `read_image.py`, importable."""
    folder = tmp_path_factory.mktemp("line")
    [text] = [block["text"] for block in BLOCK.finditer(PAGES["README.md"]) if block["file"] == "read_image.py"]
    (folder / "read_image.py").write_text(text)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("read_image", None)


@pytest.fixture(scope="module")
def files(demo, category, tmp_path_factory) -> list[Path]:
    """One photograph with a defect, written as every kind of file that reads differently."""
    folder = tmp_path_factory.mktemp("kinds")
    image = Image.open(sorted((demo / category / "test").glob("[!g]*/*.png"))[0]).convert("RGB").crop((0, 0, 64, 48))
    grey = np.asarray(image.convert("L")).astype(np.uint16) * 16 + 7  # 12 bits
    turned = Image.Exif()
    turned[0x0112] = 6
    fading = image.copy()
    fading.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(folder / "turned.jpg", exif=turned, quality=95)
    Image.fromarray(grey).save(folder / "wide.png")
    Image.fromarray(grey).save(folder / "wide.tif")
    image.convert("L").save(folder / "grey.png")
    fading.save(folder / "rgba.png")
    fading.convert("LA").save(folder / "la.png")
    image.quantize(32).save(folder / "palette.png")
    image.quantize(32).save(folder / "see_through.png", transparency=3)
    image.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    image.convert("1").save(folder / "one.png")
    image.save(folder / "plain.webp", lossless=True)
    return sorted(folder.iterdir())


def test_documented_reader_gives_the_pixels_of_decode(reader, files):
    from read_image import read_image

    for path in files:
        for depth in (12, 16):
            assert np.array_equal(read_image(path, depth), decode(path, bit_depth=depth)), (path.name, depth)


def test_documented_reader_refuses_what_it_would_read_otherwise(reader, tmp_path):
    from read_image import read_image

    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "f.tif")
    Image.fromarray(np.zeros((4, 4), np.int32)).save(tmp_path / "i.tif")
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError, match="need `msad predict`"):
            read_image(path, 16)


@pytest.mark.parametrize("size", [pytest.param(32, marks=pytest.mark.slow), "48x32"])
def test_documented_code_gives_the_verdicts_and_scores_of_predict(
    reader, files, make_bundle, size, tmp_path, monkeypatch
):
    bundle = make_bundle(size)
    exact = replace(bundle, job=replace(bundle.job, bit_depth=12))
    predict_folder(exact, [files[0].parent], tmp_path / "out", heatmaps=False)
    lines = [line.split(",") for line in (tmp_path / "out" / "scores.csv").read_text().splitlines()[1:]]
    rows = {Path(path).name: (float(score), verdict) for path, score, _, verdict, *_ in lines}
    assert set(rows) == {path.name for path in files}
    monkeypatch.chdir(tmp_path)
    export(exact, Path("gear.onnx"))
    export(exact, Path("gear.pt2"))
    codes = [*blocks("README.md", "session.run("), *blocks("docs/export.md", "session.run(")]
    codes += blocks("docs/export.md", "torch.export.load(")
    assert len(codes) == 3
    for code in codes:
        assert SHOWN in code
        for path in files if code is codes[0] else files[:1]:
            names: dict = {}
            exec(re.sub(r"^print\(.*\)$", "", code.replace(SHOWN, str(path)), flags=re.MULTILINE), names)
            score, verdict = rows[path.name]
            assert float(names["score"][0]) == pytest.approx(score, rel=1e-3, abs=1e-3), path.name
            assert bool(names["is_anomalous"][0]) == (verdict == "anomalous"), path.name
