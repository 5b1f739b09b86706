"""Lists of annotations: csv, COCO's json, and the manifests of Lookout for Vision, each against the same images."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msad.data_io.check import check, format_report
from msad.data_io.errors import DataError
from msad.data_io.known_defects import KnownDefectFiles
from msad.data_io.layout import choose_categories, find_layout, known_layout, list_categories
from msad.data_io.layouts.coco import _decompressed
from msad.data_io.splits import split_good_images
from msad.data_io.table import read_table
from msad.data_io.test_split import TestSplit
from tests.data_io.trees import HEIGHT, WIDTH, Tree

SCRATCH, DENT = "#2ca02c", "#1f77b4"


@pytest.fixture
def tree(tmp_path):
    """Eight good images and two with a scratch to train on, three good and two defective ones to measure on."""
    tree = Tree(tmp_path / "bolt", "any")
    for index in range(8):
        tree.good_train("bolt", f"train/normal/{index}.png")
    for index in range(3):
        tree.good_test("bolt", f"test/normal/{index}.png")
    for index, name in enumerate(("scratch", "dent")):
        path = f"test/anomaly/{index}.png"
        tree.defective("bolt", path, name, tree.mask(f"masks/test/{index}.png"))
    for index in range(2):
        tree.unread.append(tree.image(f"train/anomaly/{index}.png"))
        tree.masks[tree.unread[-1]] = tree.mask(f"masks/train/{index}.png")
    return tree


def rows(tree):
    """Path, split, type and mask's path of every image."""
    for path in tree.train["bolt"]:
        yield path, "train", "good", None
    for path, defect_type in tree.test["bolt"].items():
        yield path, "test", defect_type, f"masks/test/{Path(path).name}" if defect_type != "good" else None
    for path in tree.unread:
        yield path, "train", "scratch", f"masks/train/{Path(path).name}"


def as_csv(tree, *, split=True):
    with (tree.root / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["image", "label", "mask", *["split"] * split])
        for path, part, label, mask in rows(tree):
            writer.writerow([path, label, mask or "", *[part] * split])
    return "csv"


def as_coco(tree, *, split=True):
    """Masks as polygons, plain runs and compressed runs by turns."""
    for part in ("train", "test") if split else ("all",):
        images, annotations = [], []
        for number, (path, own, label, _) in enumerate(rows(tree)):
            if part not in (own, "all"):
                continue
            images.append({"id": number, "file_name": path, "height": HEIGHT, "width": WIDTH})
            if label != "good":
                outline = outlined(tree.masks[path], number)
                category = {"scratch": 1, "dent": 2}[label]
                annotations.append({"image_id": number, "category_id": category, "segmentation": outline})
        folder = tree.root / "annotations"
        folder.mkdir(exist_ok=True)
        categories = [{"id": 1, "name": "scratch"}, {"id": 2, "name": "dent"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"instances_{part}.json").write_text(json.dumps(content))
    return "coco:unannotated=good"


def outlined(mask, number):
    if number % 3 == 0:
        y, x = np.nonzero(mask)
        left, right, top, bottom = x.min(), x.max(), y.min(), y.max()
        return [[int(one) for one in (left, top, right, top, right, bottom, left, bottom)]]
    by_columns = mask.T.ravel()
    edges = np.flatnonzero(np.diff(by_columns.astype(int))) + 1
    runs = np.diff(np.r_[0, edges, by_columns.size]).tolist()
    runs = [0, *runs] if by_columns[0] else runs
    return {"size": [HEIGHT, WIDTH], "counts": runs if number % 3 == 1 else compressed(runs)}


def compressed(runs):
    """As COCO's own code writes runs."""
    text = ""
    for place, run in enumerate(runs):
        number = run - (runs[place - 2] if place > 2 else 0)
        while True:
            bits, number = number & 0x1F, number >> 5
            more = number != -1 if bits & 0x10 else number != 0
            text += chr((bits | 0x20 if more else bits) + 48)
            if not more:
                break
    return text


def as_lookout(tree, *, split=True):
    lines = {}
    for path, part, label, mask in rows(tree):
        line = {
            "source-ref": f"s3://bucket/projects/bolt/{path}",
            "anomaly-label": int(label != "good"),
            "anomaly-label-metadata": {
                "class-name": "normal" if label == "good" else "anomaly",
                "type": "groundtruth/image-classification",
                "confidence": 1,
            },
        }
        if mask:
            colour = {"scratch": SCRATCH, "dent": DENT}[label]
            marked = tree.masks[path]
            pixels = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
            pixels[marked] = list(bytes.fromhex(colour[1:]))
            Image.fromarray(pixels).save(tree.root / mask)
            kinds = {"0": {"class-name": "BACKGROUND", "hex-color": "#ffffff"}}
            kinds["1"] = {"class-name": label, "hex-color": colour}
            line["anomaly-mask-ref"] = f"s3://bucket/projects/bolt/{mask}"
            line["anomaly-mask-ref-metadata"] = {
                "internal-color-map": kinds,
                "type": "groundtruth/semantic-segmentation",
            }
        lines.setdefault(part if split else "output", []).append(json.dumps(line))
    for name, texts in lines.items():
        (tree.root / f"{name}.manifest").write_text("\n".join(texts) + "\n")
    return "lookout"


FORMS = {"csv": as_csv, "coco": as_coco, "lookout": as_lookout}


@pytest.fixture(params=FORMS)
def form(request):
    return FORMS[request.param]


def relative(tree, paths):
    return sorted(path.relative_to(tree.root).as_posix() for path in paths)


def test_every_list_says_splits_types_and_masks(tree, form):
    layout = form(tree)
    assert list_categories(tree.root, layout) == ["bolt"] and find_layout(tree.root, layout).name == layout
    split = split_good_images(tree.root, "bolt", 0, layout=layout)
    assert relative(tree, [*split.train_paths, *split.validation_paths]) == sorted(tree.train["bolt"])
    test = TestSplit(tree.root, "bolt", layout)
    found = dict(zip(relative(tree, test.paths), test.paths, strict=True))
    assert found.keys() == tree.test["bolt"].keys() and test.has_masks
    for path, defect_type, mask in zip(test.paths, test.defect_types, test.masks(), strict=True):
        name = path.relative_to(tree.root).as_posix()
        assert defect_type == tree.test["bolt"][name]
        assert np.array_equal(mask, tree.masks.get(name, np.zeros_like(mask))), name
    known = KnownDefectFiles.find(tree.root, "bolt", layout)
    assert relative(tree, known.paths) == sorted(tree.unread) and set(known.defect_types) == {"scratch"}
    for path, mask in zip(known.paths, known.masks((HEIGHT, WIDTH))[0], strict=True):
        assert np.array_equal(mask, tree.masks[path.relative_to(tree.root).as_posix()])
    assert len({*known.mask_digests()}) == 2 and all(len(one) == 64 for one in known.mask_digests())


def test_sound_list_passes_its_check(tree, form):
    report = check(tree.root, layout=form(tree))
    kept = [one for one in report.problems if "are not in" not in one.message]  # masks that another form leaves
    assert report.ok and not kept, format_report(report)
    counts = report.summary.groupby("split")["images"].sum().to_dict()
    assert counts == {"train": 8, "test": 5, "validation": 2}


def test_list_without_splits_holds_out_a_fifth_of_the_good_images(tree, form):
    layout = form(tree, split=False)
    test = TestSplit(tree.root, "bolt", layout)
    assert sorted(test.defect_types) == ["dent", "good", "good", "scratch", "scratch", "scratch"]
    good = read_table(tree.root, ["bolt"], splits=("train",), layout=layout)["path"]
    assert len(good) == 9 and not {*good} & {*test.paths}
    assert not len(KnownDefectFiles.find(tree.root, "bolt", layout))


def test_several_products_are_several_folders_with_lists(tree, form, tmp_path):
    layout = form(tree)
    assert list_categories(tmp_path, layout) == ["bolt"]
    (tmp_path / "notes").mkdir()
    report = check(tmp_path, layout=layout)
    assert report.ok and any("is no category" in one.message for one in report.problems)
    with pytest.raises(DataError, match=r"no category 'bolts'\. Did you mean 'bolt'"):
        choose_categories(tmp_path, ["bolts"], layout)


def test_csv_may_name_products_and_its_columns_and_labels_may_be_said(tree):
    with (tree.root / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["where", "quality", "fold", "object"])
        for path, part, label, _ in rows(tree):
            for product in ("left", "right"):
                writer.writerow([path.replace("/", "\\"), "0" if label == "good" else "1", f"fold-{part}", product])
    wrong = "csv:path=where,label=quality,split=fold,train=fold-train,test=fold-test"
    with pytest.raises(DataError, match=r"the labels are 0, 1, and none of them says good; .*'csv:path=.*,good="):
        list_categories(tree.root, wrong)
    layout = f"{wrong},good=0"
    assert list_categories(tree.root, layout) == ["left", "right"]
    assert relative(tree, TestSplit(tree.root, "right", layout).paths) == sorted(tree.test["bolt"])
    assert {*TestSplit(tree.root, "left", layout).defect_types} == {"good", "1"}


ASKED = {
    "no path": (
        "name,label\na.png,good\n",
        "csv",
        r"no column is called path; say .*'csv:path=COLUMN', of name",
    ),
    "two paths": ("image,file,label\na,b,good\n", "csv", r"image and file may be the path; say which it is"),
    "no such column": ("path,label\na,good\n", "csv:label=class", r"has no column 'class'; there are path, label"),
    "no label": ("path,label\na.png,good\nb.png,\n", "csv", r"1 rows have no label, line 3 the first"),
    "split": ("path,label,split\na,good,fold0\n", "csv", r"'fold0' is neither train.*--layout 'csv:train=fold0'"),
    "outside": ("path,label\n../a.png,good\n", "csv", r"leads out of"),
    "absolute": ("path,label\n/etc/a.png,good\n", "csv", r"leads out of"),
    "ragged": ("path,label\na.png,good,1\n", "csv", r"line 2 has more or fewer columns"),
    "empty": ("path,label\n", "csv", r"holds no rows"),
    "good": ("path,label\na,fine\n", "csv:good=OK", r"the labels are fine, and none is called OK"),
    "some splits": ("path,label,split\na,good,train\n", "csv", None),
}


@pytest.mark.parametrize("case", ASKED)
def test_csv_that_does_not_say_something_asks_for_it_by_name(tmp_path, case):
    text, layout, message = ASKED[case]
    (tmp_path / "labels.csv").write_text(text)
    if message:
        with pytest.raises(DataError, match=message):
            find_layout(tmp_path, layout).train(tmp_path, choose_categories(tmp_path, None, layout)[0])
    elif (tmp_path / "more.csv").write_text("path,label\nb,good\n"):
        with pytest.raises(DataError, match="say no split of 1 of 2 images, b the first"):
            find_layout(tmp_path, layout).train(tmp_path, tmp_path.name)


def coco(**changes):
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 20, "width": 24}],
        "annotations": [{"image_id": 1, "category_id": 1, "segmentation": [[0, 0, 4, 0, 4, 4]], "bbox": [0, 0, 5, 5]}],
        "categories": [{"id": 1, "name": "dent"}],
    }
    return {**content, **changes}


ASKED_OF_COCO = {
    "unannotated": (coco(annotations=[]), "coco", r"1 of 1 images have no annotation.*'coco:unannotated=good'"),
    "choice": (coco(), "coco:unannotated=maybe", r"unannotated is 'maybe'; it must be good or ignored"),
    "lost": (coco(images=[]), "coco", r"annotations of an image 1 that it does not list"),
    "lacking": (coco(images=[{"id": 1}]), "coco", r"lacks what it must have \(KeyError\('file_name'\)\)"),
    "category": (coco(categories=[]), "coco", r"lacks what it must have \(KeyError\(1\)\)"),
    "nowhere": (
        coco(images=[{**coco()["images"][0], "file_name": "b.png"}]),
        "coco",
        r"b.png is neither beside it",
    ),
    "no json": ("{", "coco", r"cannot be read as json"),
}


@pytest.mark.parametrize("case", ASKED_OF_COCO)
def test_coco_that_does_not_say_something_asks_for_it_by_name(tmp_path, case):
    content, layout, message = ASKED_OF_COCO[case]
    Image.new("L", (24, 20)).save(tmp_path / "a.png")
    (tmp_path / "x.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=message):
        find_layout(tmp_path, layout).test(tmp_path, tmp_path.name)


def test_coco_box_is_a_mask_only_where_that_is_said(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("L", (24, 20), 9).save(tmp_path / name)
    images = [{**coco()["images"][0], "id": number, "file_name": f"{'ab'[number - 1]}.png"} for number in (1, 2)]
    boxed = {"image_id": 1, "category_id": 1, "segmentation": [], "bbox": [2, 3, 5, 4]}
    (tmp_path / "x.json").write_text(json.dumps(coco(images=images, annotations=[boxed])))
    (tmp_path / "other.json").write_text('["no list of images"]')
    layout = "coco:unannotated=ignored,good=none"
    with pytest.raises(DataError, match="none is called none"):
        find_layout(tmp_path, layout).test(tmp_path, tmp_path.name)
    layout = "coco:unannotated=good"
    assert find_layout(tmp_path, layout).test(tmp_path, tmp_path.name)[-1].mask_path is None
    split = TestSplit(tmp_path, tmp_path.name, f"{layout},boxes=masks")
    expected = np.zeros((20, 24), bool)
    expected[3:7, 2:7] = True
    assert np.array_equal(list(split.masks())[-1], expected)


def test_coco_whose_size_is_not_the_images_is_refused_by_its_check(tree):
    layout = as_coco(tree)
    file = tree.root / "annotations" / "instances_test.json"
    content = json.loads(file.read_text())
    for image in content["images"]:
        image["height"] += 1
    file.write_text(json.dumps(content))
    problems = [one for one in check(tree.root, layout=layout).problems if one.severity == "error"]
    assert problems and all(one.path == file and "says that an image is 24×21" in one.message for one in problems)
    with pytest.raises(DataError, match="24×21 which is 24×20"):
        list(TestSplit(tree.root, "bolt", layout).masks())


def test_compressed_runs_are_those_that_were_written():
    rng = np.random.default_rng(0)
    for _ in range(50):
        runs = rng.integers(0, 3000, rng.integers(1, 30)).tolist()
        assert list(_decompressed(compressed(runs))) == runs


ASKED_OF_LOOKOUT = {
    "unlabelled": (
        lambda line: [line, {"source-ref": line["source-ref"]}],
        "lookout",
        r"1 lines have no label .* 2 ",
    ),
    "label": (
        lambda line: [line | {"other": 1, "other-metadata": line["anomaly-label-metadata"]}],
        "lookout",
        r"there are anomaly-label and other; say its name with --layout 'lookout:label=NAME'",
    ),
    "no label": (lambda line: [{"source-ref": line["source-ref"]}], "lookout", r"no line has one; say its name"),
    "nowhere": (lambda line: [line | {"source-ref": "s3://b/x/none.png"}], "lookout", r"are not below .*aws s3 sync"),
    "outside": (
        lambda line: [line | {"source-ref": "s3://b/../../etc/none.png"}],
        "lookout",
        r"no place of an image",
    ),
    "no source": (lambda line: [{"a": 1}], "lookout", r"line 1 has no source-ref"),
}


@pytest.mark.parametrize("case", ASKED_OF_LOOKOUT)
def test_manifest_that_does_not_say_something_asks_for_it_by_name(tree, case):
    change, layout, message = ASKED_OF_LOOKOUT[case]
    as_lookout(tree)
    (tree.root / "test.manifest").unlink()
    file = tree.root / "train.manifest"
    line = json.loads(file.read_text().splitlines()[0])
    file.write_text("\n".join(map(json.dumps, change(line))))
    with pytest.raises(DataError, match=message):
        find_layout(tree.root, layout).train(tree.root, "bolt")


def test_list_that_contradicts_itself_is_refused(tree):
    as_csv(tree)
    (tree.root / "more.csv").write_text(f"path,label,split\n{tree.train['bolt'][0]},scratch,train\n")
    with pytest.raises(DataError, match="is listed as good and as scratch"):
        list_categories(tree.root, "csv")


def test_images_that_no_list_names_are_told(tree):
    layout = as_csv(tree)
    tree.image("later/0.png")
    (problem,) = check(tree.root, layout=layout).problems
    assert (
        problem.severity == "warning"
        and "1 images are not in labels.csv and are ignored, later/0.png" in problem.message
    )


def test_list_is_read_again_when_it_has_changed(tree):
    layout = as_csv(tree)
    assert len(find_layout(tree.root, layout).train(tree.root, "bolt")) == 8
    file = tree.root / "labels.csv"
    file.write_text("".join(line for line in file.open() if "train/normal/0" not in line))
    assert len(find_layout(tree.root, layout).train(tree.root, "bolt")) == 7


def test_settings_of_a_layout_are_part_of_its_name_and_checked_with_it():
    assert known_layout('csv:"good=fine, mostly",good=OK') == 'csv:"good=fine, mostly",good=OK'
    with pytest.raises(DataError, match=r"no setting 'labell'\. Did you mean 'label'\? There are: file, good"):
        known_layout("csv:labell=x")
    with pytest.raises(DataError, match=r"layout mvtec_ad has no setting 'good'. It has none"):
        known_layout("mvtec_ad:good=x")
    with pytest.raises(DataError, match=r"expected NAME:SETTING=VALUE,..., found 'good'"):
        known_layout("csv:good")
    with pytest.raises(DataError, match=r"no layout 'cvs'. Did you mean 'csv'"):
        known_layout("cvs:good=x")
    with pytest.raises(DataError, match="label is set 2 times: say it once"):
        find_layout(Path(), "lookout:label=a,label=b").said("label")
