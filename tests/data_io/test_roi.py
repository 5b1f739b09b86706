"""The mask of what is to be inspected: where each layout has it, what is read of it, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from msad.data_io.check import check
from msad.data_io.errors import DataError
from msad.data_io.ground_truth import mask_files
from msad.data_io.layout import find_layout, list_categories
from msad.data_io.roi import find_roi, load_roi, read_roi
from msad.data_io.table import read_table
from tests.data_io.trees import HEIGHT, TREES, WIDTH

PLACES = {
    "kolektor_sdd": "roi.png",
    "kolektor_sdd2": "roi.png",
    "magnetic_tile": "roi.png",
    "dagm": "Class1/Class1/roi.png",
    "folder": "roi.png",
}


@pytest.fixture
def drawn(tmp_path):
    """Return a function that saves a mask whose rows below `top` are inside."""

    def draw(path=tmp_path / "roi.png", size=(HEIGHT, WIDTH), top=HEIGHT // 2, white=255):
        mask = np.zeros(size, np.uint8)
        mask[top:] = white
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
        return path

    return draw


@pytest.mark.parametrize("layout", TREES)
def test_region_has_its_place_in_every_layout_and_is_no_image_there(layout, tmp_path, drawn):
    tree = TREES[layout](tmp_path)
    images = sorted(read_table(tmp_path, splits=("train",))["path"])
    before = check(tmp_path).problems
    category = list_categories(tmp_path)[0]
    place = find_layout(tmp_path).roi(tmp_path, category)
    assert find_roi(tmp_path, category) is None and load_roi(tmp_path, category, 16, images[0]) is None
    expected = PLACES.get(layout, f"{category}/roi.png")
    assert place in (tree.root / expected, tree.root / expected.replace("Class1/Class1", "Class1"))
    drawn(place)
    assert find_roi(tmp_path, category) == place and mask_files(["roi.png", "part.png"], category) == {"roi.png"}
    assert check(tmp_path).problems == before and sorted(read_table(tmp_path, splits=("train",))["path"]) == images
    inside = load_roi(tmp_path, category, "32x16", images[0])
    assert inside.shape == (32, 16) and not inside[:16].any() and inside[16:].all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"white": 0}, "marks nothing: draw what is to be inspected in white"),
        ({"size": (200, 240), "top": 199}, "only 0.50% of the image is inside.*crop the photographs"),
        ({"size": (20, 40)}, "is 40×20, of another shape than the photographs, 24×20 the first"),
    ],
)
def test_region_that_cannot_be_used_is_refused_by_its_name(options, message, drawn, tmp_path):
    path = drawn(**options)
    with pytest.raises(DataError, match=message) as refused:
        read_roi(path, [(HEIGHT, WIDTH)] * 3)
    assert str(refused.value).startswith(str(path))
    tree = TREES["mvtec_ad"](tmp_path / "data")
    drawn(tree.root / "bottle" / "roi.png", **options)
    (problem,) = check(tree.root).errors
    assert problem.path == tree.root / "bottle" / "roi.png" and str(refused.value).endswith(problem.message)


def test_region_of_photographs_of_many_shapes_is_refused(drawn):
    with pytest.raises(DataError, match="different shapes, so no region fits them all"):
        read_roi(drawn(), [(20, 24), (20, 48)])


def test_region_that_is_no_image_is_an_error_of_the_check(tmp_path):
    tree = TREES["mvtec_ad"](tmp_path)
    (tree.root / "bottle" / "roi.png").write_bytes(b"")
    (problem,) = check(tree.root).errors
    assert "is empty (0 bytes)" in problem.message


def test_region_of_zeros_and_ones_and_at_another_size_of_the_same_shape(drawn):
    inside = read_roi(drawn(size=(2 * HEIGHT, 2 * WIDTH), top=10, white=1), [(HEIGHT, WIDTH)])
    assert inside.shape == (2 * HEIGHT, 2 * WIDTH) and not inside[:10].any() and inside[10:].all()


def test_region_of_which_nothing_is_left_at_the_size_of_the_network(drawn, tmp_path):
    tree = TREES["mvtec_ad"](tmp_path)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[1::2] = 255
    path = tree.root / "bottle" / "roi.png"
    Image.fromarray(mask).save(path)
    example = tree.root / tree.train["bottle"][0]
    assert load_roi(tree.root, "bottle", (HEIGHT, WIDTH), example).sum() == HEIGHT * WIDTH / 2
    mask[:] = 0
    mask[0, :6] = 255
    Image.fromarray(mask).save(path)
    with pytest.raises(DataError, match="nothing is left of the region at 4×4 pixels; raise image_size"):
        load_roi(tree.root, "bottle", 4, example)
