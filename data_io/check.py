"""Find everything that is wrong with a dataset root at once, before a GPU is asked for.

| problem                                                             | severity |
|---------------------------------------------------------------------|----------|
| root missing, in no layout or in two, unknown category              | error    |
| no or fewer good images than a split needs, empty folder            | error    |
| a dataset's own split or label file missing or unreadable           | error    |
| image or mask that cannot be decoded, is truncated or has no bytes  | error    |
| defective image without mask; mask without image or of other size   | error    |
| the same image (by content) in train and in test                    | error    |
| no test images, none of them good, none defective; an all-black mask | warning  |
| a file that is no image, a folder the layout does not know          | warning  |
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from data_io.decode import decode, decode_mask, read_header
from data_io.errors import DataError
from data_io.files import mask_files
from data_io.layout import AUTO, GOOD, SPLITS, choose_categories, find_layout
from data_io.layouts.base import Layout, Sample
from data_io.parallel import map_in_threads
from data_io.report import CheckReport, Problem, format_report

__all__ = ["CheckReport", "Problem", "check", "format_report"]

# Image to mask, by split and type of defect.
Groups = dict[tuple[str, str], dict[Path, Path | None]]
SUMMARY_COLUMNS = ("category", "split", "defect_type", "images", "masks", "sizes", "modes")


@dataclass(frozen=True)
class _Found:
    """What opening one file gave; everything but the path is None after a failure, or where it was not to be opened."""

    size: tuple[int, int] | None = None
    mode: str | None = None
    digest: bytes | None = None
    problem: Problem | None = None
    blank: bool = False


def check(
    root: Path | str,
    splits: Collection[str] = SPLITS,
    categories: Iterable[str] | None = None,
    layout: str = AUTO,
) -> CheckReport:
    """Check a dataset root; never raises for what is wrong with it.

    Parameters
    ----------
    root : the dataset's root.
    splits : what may be opened. With `("train",)`, the check before a search, no file of the test split is opened: of
        test and ground truth only names and lengths are looked at, so undecodable test images, sizes of masks and
        duplicates between train and test stay unknown; where the labels of the test lie in files, its images too.
    categories : names to check; None for all.
    layout : see `data_io.layout.find_layout`.

    Returns
    -------
    CheckReport with all problems; `data_io.report.format_report` makes it text.
    """
    root = Path(root)
    splits = {splits} if isinstance(splits, str) else set(splits)
    try:
        found = find_layout(root, layout)
        names = choose_categories(root, categories, layout)
    except DataError as error:
        # The text of the error starts with the root, and so does the line of a problem.
        message = str(error).removeprefix(f"{root}: ")
        return CheckReport(root, [Problem("error", root, message)], pd.DataFrame(columns=list(SUMMARY_COLUMNS)))
    problems = list(found.strange_folders(root)) if categories is None else []
    rows = []
    for name in names:
        category_problems, category_rows = _check_category(found, root, name, splits)
        problems += category_problems
        rows += category_rows
    # A list of the split that all categories share is told once.
    problems = list(dict.fromkeys(problems))
    return CheckReport(root, problems, pd.DataFrame(rows, columns=list(SUMMARY_COLUMNS)), found.name)


def _check_category(layout: Layout, root: Path, category: str, splits: set[str]) -> tuple[list[Problem], list[tuple]]:
    try:
        problems = list(layout.faults(root, category))
        train = layout.train(root, category)
        test = layout.test(root, category) if "test" in splits or not layout.test_needs_opening else []
    except DataError as error:  # a list or a label that the layout needs is missing or unreadable
        return [_as_problem(line, root / category) for line in str(error).splitlines()], []
    groups: Groups = {("train", GOOD): dict.fromkeys(train)}
    for sample in test:
        groups.setdefault(("test", sample.defect_type), {})[sample.path] = sample.mask_path
    images = [image for pairs in groups.values() for image in pairs]
    masks = [file for pairs in groups.values() for mask in pairs.values() if mask for file in mask_files(mask)]
    may_open = {image: split in splits for (split, _), pairs in groups.items() for image in pairs}
    look_at_mask = partial(_look_mask, may_open="test" in splits, threshold=layout.mask_threshold)
    found = dict(zip(images, map_in_threads(lambda path: _look(path, may_open[path]), images), strict=True))
    found |= zip(masks, map_in_threads(look_at_mask, masks), strict=True)
    problems += [one.problem for one in found.values() if one.problem]
    problems += _check_masks(layout, layout.test_folder(root, category), test, found)
    problems += _check_duplicates(groups, found)
    return problems, [_summarise(category, *key, pairs, found) for key, pairs in groups.items()]


def _check_masks(
    layout: Layout, test_folder: Path, samples: list[Sample], found: dict[Path, _Found]
) -> Iterator[Problem]:
    defective = [sample for sample in samples if sample.label]
    if defective and layout.masks_optional and not any(sample.mask_path for sample in defective):
        yield Problem("warning", test_folder, "no masks: what a model marks in these images cannot be measured")
        return
    for sample in defective:
        if sample.mask_path is None:
            yield Problem("error", sample.path, f"has no mask; expected {layout.expected_mask(sample)}")
            continue
        image, files = sample.path, mask_files(sample.mask_path)
        for mask in files:
            one, other = found[mask].size, found[image].size
            if one and other and one != other:
                yield Problem(
                    "error",
                    mask,
                    f"is {one[0]}×{one[1]} but its image {image.name} is {other[0]}×{other[1]}; mend the mask",
                )
        if all(found[mask].blank for mask in files):
            yield Problem("warning", sample.mask_path, f"marks no pixel, but {image.name} is called defective")


def _check_duplicates(groups: Groups, found: dict[Path, _Found]) -> Iterator[Problem]:
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


def _look_mask(path: Path, may_open: bool, threshold: int) -> _Found:
    try:
        _require_bytes(path)
        if not may_open:
            return _Found()
        mask = decode_mask(path, threshold)
        return _Found(size=(mask.shape[1], mask.shape[0]), blank=not mask.any())
    except (DataError, OSError) as error:
        return _failed(path, error)


def _require_bytes(path: Path) -> None:
    if path.stat().st_size == 0:
        raise DataError(f"{path}: is empty (0 bytes); replace or remove it")


def _as_problem(line: str, otherwise: Path) -> Problem:
    path, separator, message = line.partition(": ")
    return Problem("error", Path(path), message) if separator else Problem("error", otherwise, line)


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
