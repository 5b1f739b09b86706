"""Find everything that is wrong with a dataset root at once, before a GPU is asked for.

| problem                                                            | severity |
|--------------------------------------------------------------------|----------|
| root missing, no category in it, unknown category                  | error    |
| no train/good, fewer good images than a split needs, empty folder  | error    |
| image or mask that cannot be decoded, is truncated or has no bytes | error    |
| defective image without mask; mask without image or of other size  | error    |
| the same image (by content) in train and in test                   | error    |
| no test folder, no test/good, an all-black mask                    | warning  |
| a file that is no image, a folder the layout does not know         | warning  |
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from data_io.decode import decode, decode_mask, read_header
from data_io.errors import DataError
from data_io.layout import GOOD, SPLITS, choose_categories, list_folders, list_images, list_strangers, pair_masks
from data_io.parallel import map_in_threads
from data_io.report import CheckReport, Problem, format_report
from data_io.splits import FEWEST_GOOD_IMAGES

__all__ = ["CheckReport", "Problem", "check", "format_report"]

SUMMARY_COLUMNS = ("category", "split", "defect_type", "images", "masks", "sizes", "modes")


@dataclass(frozen=True)
class _Found:
    """What opening one file gave; everything but the path is None after a failure, or where it was not to be opened."""

    size: tuple[int, int] | None = None
    mode: str | None = None
    digest: bytes | None = None
    problem: Problem | None = None
    blank: bool = False


def check(root: Path | str, splits: Collection[str] = SPLITS, categories: Iterable[str] | None = None) -> CheckReport:
    """Check a dataset root in the MVTec AD layout; never raises for what is wrong with it.

    Parameters
    ----------
    root : folder of the categories.
    splits : what may be opened. With `("train",)`, the check before a search, no file outside train/ is opened: of test
        and ground truth only names and lengths are looked at, so undecodable test images, sizes of masks and duplicates
        between train and test stay unknown.
    categories : names to check; None for all.

    Returns
    -------
    CheckReport with all problems; `data_io.report.format_report` makes it text.
    """
    root = Path(root)
    splits = {splits} if isinstance(splits, str) else set(splits)
    try:
        names = choose_categories(root, categories)
    except DataError as error:
        # The text of the error starts with the root, and so does the line of a problem.
        message = str(error).removeprefix(f"{root}: ")
        return CheckReport(root, [Problem("error", root, message)], pd.DataFrame(columns=list(SUMMARY_COLUMNS)))
    problems: list[Problem] = []
    if categories is None:
        problems += [
            Problem("warning", folder, "is no category (no train/ in it) and is ignored")
            for folder in list_folders(root)
            if folder.name not in names
        ]
    rows = []
    for name in names:
        found, category_rows = _check_category(root / name, splits)
        problems += found
        rows += category_rows
    return CheckReport(root, problems, pd.DataFrame(rows, columns=list(SUMMARY_COLUMNS)))


def _check_category(folder: Path, splits: set[str]) -> tuple[list[Problem], list[tuple]]:
    problems = list(_check_folders(folder))
    groups = {("train", GOOD): dict.fromkeys(list_images(folder / "train" / GOOD))}
    for path in list_folders(folder / "test"):
        if path.name == GOOD:
            groups["test", GOOD] = dict.fromkeys(list_images(path))
            continue
        groups["test", path.name], orphans = pair_masks(folder, path.name)
        problems += [
            Problem("error", mask, f"mask without its image in test/{path.name}; remove it or put the image back")
            for mask in orphans
        ]
    images = [image for pairs in groups.values() for image in pairs]
    masks = [mask for pairs in groups.values() for mask in pairs.values() if mask]
    may_open = {image: split in splits for (split, _), pairs in groups.items() for image in pairs}
    found = dict(zip(images, map_in_threads(lambda path: _look(path, may_open[path]), images), strict=True))
    found |= zip(masks, map_in_threads(lambda path: _look_mask(path, "test" in splits), masks), strict=True)
    problems += [one.problem for one in found.values() if one.problem]
    for (split, defect_type), pairs in groups.items():
        if split == "test" and defect_type != GOOD:
            problems += _check_masks(pairs, found)
    problems += _check_duplicates(groups, found)
    return problems, [_summarise(folder.name, *key, pairs, found) for key, pairs in groups.items()]


def _check_folders(folder: Path) -> Iterator[Problem]:
    good = folder / "train" / GOOD
    count = len(list_images(good))
    if not good.is_dir():
        yield Problem("error", good, "no such folder; put the images of good parts there")
    elif count == 0:
        yield Problem("error", good, "holds no images; put the images of good parts there")
    elif count < FEWEST_GOOD_IMAGES:
        yield Problem("error", good, f"holds {count} images; at least {FEWEST_GOOD_IMAGES} are needed")
    for path in list_folders(folder / "train"):
        if path.name != GOOD:
            yield Problem("warning", path, "is ignored: only train/good is learned from")
    if not (folder / "test").is_dir():
        yield Problem("warning", folder / "test", "no such folder; a model can be searched but not be measured")
    elif not (folder / "test" / GOOD).is_dir():
        yield Problem("warning", folder / "test" / GOOD, "no such folder; without good test images there is no AUROC")
    image_folders = [good, *list_folders(folder / "test"), *list_folders(folder / "ground_truth")]
    for path in image_folders:
        if path != good and not list_images(path):
            yield Problem("error", path, "holds no images; fill or remove it")
        for stranger in list_strangers(path):
            yield Problem("warning", stranger, "is no image file (png, jpg, bmp, tif) and is ignored")
    tested = {path.name for path in list_folders(folder / "test")}
    for path in list_folders(folder / "ground_truth"):
        if path.name not in tested:
            yield Problem("error", path, f"masks without images: there is no {folder / 'test' / path.name}")


def _check_masks(pairs: dict[Path, Path | None], found: dict[Path, _Found]) -> Iterator[Problem]:
    for image, mask in pairs.items():
        if mask is None:
            expected = f"ground_truth/{image.parent.name}/{image.stem}_mask.png"
            yield Problem("error", image, f"has no mask; expected {expected}")
            continue
        one, other = found[mask].size, found[image].size
        if one and other and one != other:
            yield Problem(
                "error",
                mask,
                f"is {one[0]}×{one[1]} but its image {image.name} is {other[0]}×{other[1]}; mend the mask",
            )
        if found[mask].blank:
            yield Problem("warning", mask, f"marks no pixel, but {image.name} is called defective")


def _check_duplicates(groups: dict[tuple[str, str], dict], found: dict[Path, _Found]) -> Iterator[Problem]:
    trained = {found[path].digest: path for path in groups["train", GOOD] if found[path].digest}
    for (split, _), pairs in groups.items():
        for path in pairs if split == "test" else ():
            if twin := trained.get(found[path].digest):
                yield Problem("error", path, f"is the same image as {twin}; a test image must not be trained on")


def _look(path: Path, may_open: bool) -> _Found:
    """Decode one image whole, because only that shows a truncated one; or only ask for its length."""
    try:
        if not may_open:
            _require_bytes(path)
            return _Found()
        content = path.read_bytes()
        _require_bytes(path)
        header = read_header(path, content)
        decode(path, content)
        return _Found((header.width, header.height), header.mode, hashlib.sha256(content).digest())
    except (DataError, OSError) as error:
        return _failed(path, error)


def _look_mask(path: Path, may_open: bool) -> _Found:
    try:
        _require_bytes(path)
        if not may_open:
            return _Found()
        mask = decode_mask(path)
        return _Found(size=(mask.shape[1], mask.shape[0]), blank=not mask.any())
    except (DataError, OSError) as error:
        return _failed(path, error)


def _require_bytes(path: Path) -> None:
    if path.stat().st_size == 0:
        raise DataError(f"{path}: is empty (0 bytes); replace or remove it")


def _failed(path: Path, error: Exception) -> _Found:
    message = error.strerror if isinstance(error, OSError) else str(error).removeprefix(f"{path}: ")
    return _Found(problem=Problem("error", path, str(message)))


def _summarise(category: str, split: str, defect_type: str, pairs: dict, found: dict[Path, _Found]) -> tuple:
    sizes = [found[path].size for path in pairs if found[path].size]
    modes = sorted({found[path].mode for path in pairs if found[path].mode})
    spans = [
        f"{min(side)}" if min(side) == max(side) else f"{min(side)}–{max(side)}" for side in zip(*sizes, strict=True)
    ]
    extent = ("×" if len(set(sizes)) == 1 else " × ").join(spans)
    masks = sum(mask is not None for mask in pairs.values())
    return category, split, defect_type, len(pairs), masks, extent, ", ".join(modes)
