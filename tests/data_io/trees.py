"""One small tree per layout, in the exact published form, with what must be read from it.

Images are noise, no two alike; masks are rectangles of which the test knows the pixels.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 20, 24


@dataclass
class Tree:
    """A root under construction; `train` and `test` hold paths relative to it, `test` with type and mask."""

    root: Path
    layout: str
    train: dict[str, list[str]] = field(default_factory=dict)
    test: dict[str, dict[str, str]] = field(default_factory=dict)
    masks: dict[str, np.ndarray] = field(default_factory=dict)
    truth: list[str] = field(default_factory=list)  # files that only the test split may open
    unread: list[str] = field(default_factory=list)  # images that belong to neither split
    drawn: int = 0

    def image(self, path: str) -> str:
        """Save an image unlike all others."""
        self.drawn += 1
        pixels = np.random.default_rng(self.drawn).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        self._save(Image.fromarray(pixels), path)
        return path

    def mask(
        self, path: str, value: int = 255, save: Callable[[np.ndarray], Image.Image] = Image.fromarray
    ) -> np.ndarray:
        """Save a mask whose defect has a value; 0 for a mask that marks nothing. Returns where it is."""
        self.drawn += 1
        top, left = self.drawn % 9, self.drawn % 7
        marked = np.zeros((HEIGHT, WIDTH), bool)
        marked[top : top + 5, left : left + 8] = value > 0
        self._save(save(np.where(marked, value, 0).astype(np.uint8)), path)
        return marked

    def good_train(self, category: str, path: str) -> None:
        self.train.setdefault(category, []).append(self.image(path))

    def good_test(self, category: str, path: str) -> None:
        self.test.setdefault(category, {})[self.image(path)] = "good"

    def defective(self, category: str, path: str, defect_type: str, *masks: np.ndarray) -> None:
        self.test.setdefault(category, {})[self.image(path)] = defect_type
        if masks:
            self.masks[path] = np.logical_or.reduce(masks)

    def truth_mask(self, path: str, **options) -> np.ndarray:
        self.truth.append(path)
        return self.mask(path, **options)

    def test_files(self) -> list[str]:
        """Everything that only the evaluation may open."""
        return [*self.truth, *(path for images in self.test.values() for path in images)]

    def _save(self, image: Image.Image, path: str) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        image.save(target)


def palette(values: np.ndarray) -> Image.Image:
    """An index image whose colours are all dark: only the index tells the defect."""
    image = Image.fromarray(values).convert("P")
    image.putdata(values.ravel().tolist())
    image.putpalette([0, 0, 0, 30, 0, 0, 0, 40, 0, 0, 0, 50] + [0] * 756)
    return image


def mvtec_ad(root: Path, layout: str = "mvtec_ad", categories: tuple[str, ...] = ("bottle", "cable")) -> Tree:
    tree = Tree(root, layout)
    for category in categories:
        for index in range(6):
            tree.good_train(category, f"{category}/train/good/{index:03}.png")
        for index in range(2):
            tree.good_test(category, f"{category}/test/good/{index:03}.png")
        for defect_type in ("broken_large", "contamination"):
            for index in range(2):
                mask = tree.truth_mask(f"{category}/ground_truth/{defect_type}/{index:03}_mask.png")
                tree.defective(category, f"{category}/test/{defect_type}/{index:03}.png", defect_type, mask)
    return tree


def mpdd(root: Path) -> Tree:
    return mvtec_ad(root, categories=("bracket_black", "connector"))


def mvtec_ad_2(root: Path) -> Tree:
    tree = Tree(root, "mvtec_ad_2")
    for category in ("can", "sheet_metal"):
        for index in range(6):
            tree.good_train(category, f"{category}/train/good/{index:03}_regular.png")
        for index in range(2):
            tree.good_train(category, f"{category}/validation/good/{index:03}_regular.png")
        for index in range(2):
            name = f"{index:03}_overexposed"
            tree.good_test(category, f"{category}/test_public/good/{name}.png")
            mask = tree.truth_mask(f"{category}/test_public/ground_truth/bad/{name}_mask.png")
            tree.defective(category, f"{category}/test_public/bad/{name}.png", "bad", mask)
        for folder in ("test_private", "test_private_mixed"):
            path = tree.image(f"{category}/{folder}/000_regular.png")
            tree.truth.append(path)
            tree.unread.append(path)
    return tree


def mvtec_loco(root: Path) -> Tree:
    tree = Tree(root, "mvtec_loco")
    category = "pushpins"
    for index in range(6):
        tree.good_train(category, f"{category}/train/good/{index:03}.png")
    for index in range(3):
        tree.good_train(category, f"{category}/validation/good/{index:03}.png")
    for index in range(2):
        tree.good_test(category, f"{category}/test/good/{index:03}.png")
    for defect_type in ("logical_anomalies", "structural_anomalies"):
        for index in range(2):
            folder = f"{category}/ground_truth/{defect_type}/{index:03}"
            # The value of a pixel tells the kind of anomaly; an image may have several masks.
            masks = [tree.truth_mask(f"{folder}/{part:03}.png", value=(255, 120)[part]) for part in range(index + 1)]
            tree.defective(category, f"{category}/test/{defect_type}/{index:03}.png", defect_type, *masks)
    (root / category / "defects_config.json").write_text("[]")
    return tree


def visa(root: Path) -> Tree:
    tree, rows = Tree(root, "visa"), []
    for category in ("candle", "pcb1"):
        images = f"{category}/Data/Images"
        for index in range(6):
            tree.good_train(category, path := f"{images}/Normal/{index:04}.JPG")
            rows.append((category, "train", "normal", path, ""))
        for index in range(6, 9):
            tree.good_test(category, path := f"{images}/Normal/{index:04}.JPG")
            rows.append((category, "test", "normal", path, ""))
        for index in range(2):
            mask_path = f"{category}/Data/Masks/Anomaly/{index:03}.png"
            mask = tree.truth_mask(mask_path, value=index + 1, save=(Image.fromarray, palette)[index])
            tree.defective(category, path := f"{images}/Anomaly/{index:03}.JPG", "anomaly", mask)
            rows.append((category, "test", "anomaly", path, mask_path))
        (root / category / "image_anno.csv").write_text("image,label,mask\n")
    (root / "split_csv").mkdir()
    with (root / "split_csv" / "1cls.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("object", "split", "label", "image", "mask"), *rows])
    return tree


def btad(root: Path) -> Tree:
    tree = Tree(root, "btad")
    for category, suffix in (("01", "bmp"), ("02", "png")):
        for index in range(6):
            tree.good_train(category, f"{category}/train/ok/{index:04}.{suffix}")
        for index in range(2):
            tree.good_test(category, f"{category}/test/ok/{index:04}.{suffix}")
            mask = tree.truth_mask(f"{category}/ground_truth/ko/{index:04}.{('png', 'bmp')[index]}")
            tree.defective(category, f"{category}/test/ko/{index:04}.{suffix}", "ko", mask)
    return tree


def kolektor_sdd(root: Path) -> Tree:
    tree, category = Tree(root, "kolektor_sdd"), "kolektor_sdd"
    for item in range(1, 7):
        for part in range(3):
            image, mask = (f"kos{item:02}/Part{part}{end}" for end in (".jpg", "_label.bmp"))
            if item % 3 == 0:
                marked = tree.truth_mask(mask, value=255 if part == 2 else 0)
                if part == 2:
                    tree.defective(category, image, "defect", marked)
                else:
                    tree.good_test(category, image)
            elif part == 2:
                tree.mask(mask)
                tree.unread.append(tree.image(image))
            else:
                tree.mask(mask, value=0)
                tree.good_train(category, image)
    return tree


def kolektor_sdd2(root: Path) -> Tree:
    tree, category = Tree(root, "kolektor_sdd2"), "kolektor_sdd2"
    for index in range(8):
        image, mask = (f"train/{10000 + index}{end}" for end in (".png", "_GT.png"))
        if index in (2, 5):
            tree.mask(mask)
            tree.unread.append(tree.image(image))
        else:
            tree.mask(mask, value=0)
            tree.good_train(category, image)
    for index in range(5):
        image, mask = (f"test/{20000 + index}{end}" for end in (".png", "_GT.png"))
        marked = tree.truth_mask(mask, value=255 if index % 2 else 0)
        if index % 2:
            tree.defective(category, image, "defect", marked)
        else:
            tree.good_test(category, image)
    return tree


def dagm(root: Path) -> Tree:
    tree = Tree(root, "dagm")
    for category in ("Class1", "Class10"):
        for part, count, defective in (("Train", 8, (3, 6)), ("Test", 5, (0, 4))):
            lines = ["1"]
            for index in range(count):
                number = 576 + index
                image, label = f"{category}/{part}/{number:04}.PNG", f"{category}/{part}/Label/{number:04}_label.PNG"
                if index not in defective:
                    (tree.good_train if part == "Train" else tree.good_test)(category, image)
                    lines.append(f"{number:04}\t0\t{number:04}.PNG\t0\t0")
                    continue
                lines.append(f"{number:04}\t1\t{number:04}.PNG\t1\t{number:04}_label.PNG")
                if part == "Train":
                    tree.mask(label)
                    tree.unread.append(tree.image(image))
                else:
                    tree.defective(category, image, "defect", tree.truth_mask(label))
            (root / category / part / "Label" / "Labels.txt").write_text("\r\n".join(lines) + "\r\n")
        tree.truth.append(f"{category}/Test/Label/Labels.txt")
    return tree


def magnetic_tile(root: Path) -> Tree:
    """With the published list of training images beside the folders."""
    tree, category = Tree(root, "magnetic_tile"), "magnetic_tile"
    for index in range(10):
        stem = f"MT_Free/Imgs/exp{index % 6 + 1}_num_{1000 + index}"
        if index < 7:
            tree.mask(f"{stem}.png", value=0)
            tree.good_train(category, f"{stem}.jpg")
        else:
            tree.truth_mask(f"{stem}.png", value=0)
            tree.good_test(category, f"{stem}.jpg")
    for defect_type in ("Blowhole", "Crack"):
        for index in range(2):
            stem = f"MT_{defect_type}/Imgs/exp1_num_{2000 + index}"
            tree.defective(category, f"{stem}.jpg", defect_type.lower(), tree.truth_mask(f"{stem}.png"))
    names = [Path(path).name for path in tree.train[category]]
    (root / "mtd_train_filenames.txt").write_text("".join(f"{name}\n" for name in names))
    return tree


def folder(root: Path) -> Tree:
    """One product, everything given."""
    tree, category = Tree(root, "folder"), root.name
    for index in range(6):
        tree.good_train(category, f"good/{index}.jpg")
    for index in range(2):
        tree.good_test(category, f"good_test/{index}.jpg")
        tree.defective(category, f"bad/{index}.jpg", "bad", tree.truth_mask(f"masks/{index}.png"))
        mask = tree.truth_mask(f"masks/scratch/{index}_mask.png")
        tree.defective(category, f"bad/scratch/{index}.tif", "scratch", mask)
    return tree


def folder_of_products(root: Path) -> Tree:
    """Two products, one with good images only, folders under other names."""
    tree = Tree(root, "folder")
    for index in range(6):
        tree.good_train("bolt", f"bolt/OK/{index}.png")
        tree.good_train("nut", f"nut/normal/{index}.png")
    tree.good_test("bolt", "bolt/test_good/0.png")
    tree.defective("bolt", "bolt/NG/dent/0.png", "dent")
    return tree


TREES = {
    build.__name__: build
    for build in (
        mvtec_ad,
        mpdd,
        mvtec_ad_2,
        mvtec_loco,
        visa,
        btad,
        kolektor_sdd,
        kolektor_sdd2,
        dagm,
        magnetic_tile,
        folder,
        folder_of_products,
    )
}
