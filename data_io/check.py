"""Find everything that is wrong with a dataset root at once, before a GPU is asked for.

| problem                                                             | severity |
|---------------------------------------------------------------------|----------|
| root missing, in no layout or in two, unknown category              | error    |
| no or fewer good images than a split needs, empty folder            | error    |
| a dataset's own split or label file missing or unreadable           | error    |
| image or mask that cannot be decoded, is truncated or has no bytes  | error    |
| mask of another size than its image                                 | error    |
| region of interest: empty, unreadable, of another shape than images | error    |
| the same image (by content) in train and in test                    | error    |
| no test images, none of them good, none defective; an all-black mask | warning  |
| defective images without masks: pixels are measured on the others   | warning  |
| a mask that matches no image; masks of zeros and ones               | warning  |
| many copies among the training images                               | warning  |
| values above the bit depth, further pages of a file                 | warning  |
| a file that is no image, a folder the layout does not know          | warning  |
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from msad.data_io.decode import explained, read_header, read_image, read_mask
from msad.data_io.errors import DataError
from msad.data_io.files import mask_files
from msad.data_io.layout import AUTO, GOOD, SPLITS, choose_categories, find_layout
from msad.data_io.layouts.base import Layout
from msad.data_io.layouts.known import FOLDER as VALIDATION
from msad.data_io.layouts.sample import Sample
from msad.data_io.masks import read_truth
from msad.data_io.parallel import map_in_threads
from msad.data_io.report import CheckReport, Problem, format_report
from msad.data_io.roi import read_roi
from msad.data_io.shape import common_ratio
from msad.data_io.wide import FULL, found_depth

__all__ = ["CheckReport", "Problem", "check", "format_report"]

# Image to mask, by split and type of defect.
Groups = dict[tuple[str, str], dict[Path, Path | None]]
# Copies among the training images that are worth a word, as a share of them.
MANY_COPIES = 0.1
SUMMARY_COLUMNS = ("category", "split", "defect_type", "images", "masks", "sizes", "modes")


@dataclass(frozen=True)
class _Found:
    """What opening one file gave; everything but the path is None after a failure, or where it was not to be opened."""

    size: tuple[int, int] | None = None
    mode: str | None = None
    digest: bytes | None = None
    problem: Problem | None = None
    blank: bool = False
    of_ones: bool = False
    largest: int | None = None
    pages: int = 1


def check(
    root: Path | str,
    splits: Collection[str] = SPLITS,
    categories: Iterable[str] | None = None,
    layout: str = AUTO,
    bit_depth: int | None = None,
) -> CheckReport:
    """Check a dataset root; never raises for what is wrong with it.

    Parameters
    ----------
    root : the dataset's root.
    splits : what may be opened. With `("train",)`, the check before a search, no file of the test split is opened: of
        test and ground truth only names and lengths are looked at, so undecodable test images, sizes of masks and
        duplicates between train and test stay unknown; where the labels of the test lie in files, its images too. Only
        of a test image as long as a known defect are the bytes compared with that one's.
    categories : names to check; None for all.
    layout : see `msad.data_io.layout.find_layout`.
    bit_depth : bits that the camera fills of files of more than 8 (`msad.data_io.wide`); None finds it on the good
        training images of each category.

    Returns
    -------
    CheckReport with all problems; `msad.data_io.report.format_report` makes it text.
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
    rows, depths, ratios = [], {}, {}
    for name in names:
        category_problems, category_rows, depths[name], ratios[name] = _check_category(
            found, root, name, splits, bit_depth
        )
        problems += category_problems
        rows += category_rows
    # A list of the split that all categories share is told once.
    problems = list(dict.fromkeys(problems))
    return CheckReport(root, problems, pd.DataFrame(rows, columns=list(SUMMARY_COLUMNS)), found.name, depths, ratios)


def _check_category(
    layout: Layout, root: Path, category: str, splits: set[str], bit_depth: int | None
) -> tuple[list[Problem], list[tuple], int, float | None]:
    try:
        problems = [*layout.faults(root, category), *layout.known_faults(root, category)]
        train, known = layout.train(root, category), layout.known_defects(root, category)
        test = layout.test(root, category) if "test" in splits or not layout.test_needs_opening else []
    except DataError as error:  # a list or a label that the layout needs is missing or unreadable
        return [_as_problem(line, root / category) for line in str(error).splitlines()], [], bit_depth or FULL, None
    groups: Groups = {("train", GOOD): dict.fromkeys(train)}
    for split, samples in ((VALIDATION, known), ("test", test)):
        for sample in samples:
            groups.setdefault((split, sample.defect_type), {})[sample.path] = sample.mask_path
    images = [image for pairs in groups.values() for image in pairs]
    opened = splits | {VALIDATION} if "train" in splits else splits
    may_open = {image: split in opened for (split, _), pairs in groups.items() for image in pairs}
    found = dict(zip(images, map_in_threads(lambda path: _look(path, may_open[path]), images), strict=True))
    looks = {
        file: partial(_look_mask, file, may_open[sample.path], threshold=layout.mask_threshold)
        for sample in (*known, *test)
        if sample.mask_path and sample.marking is None
        for file in mask_files(sample.mask_path)
    }
    found |= zip(looks, map_in_threads(lambda look: look(), looks.values()), strict=True)
    problems += [one.problem for one in found.values() if one.problem]
    marked = [one for one in (*known, *test) if one.marking is not None and may_open[one.path] and found[one.path].size]
    problems += filter(None, map_in_threads(lambda sample: _marking_problem(sample, found[sample.path]), marked))
    problems += _check_missing_masks(layout, layout.test_folder(root, category), test)
    problems += _check_masks(layout, [*known, *test], found)
    problems += _check_known(known, groups, found)
    problems += _check_duplicates(groups, found)
    depth = bit_depth or found_depth(found[path].largest for path in train)
    problems += _check_copies(layout.train_folder(root, category), train, found)
    for folder, paths in (
        (layout.train_folder(root, category), train),
        (layout.validation_folder(root, category), [sample.path for sample in known]),
        (layout.test_folder(root, category), [sample.path for sample in test]),
    ):
        problems += _check_reading(folder, paths, found, depth)
    sizes = [(size[1], size[0]) for path in train if (size := found[path].size)]
    problems += _check_roi(layout.roi(root, category), sizes)
    ratio = common_ratio(sizes)
    rows = [_summarise(category, *key, pairs, found, depth) for key, pairs in groups.items()]
    return problems, rows, depth, ratio


def _check_missing_masks(layout: Layout, test_folder: Path, samples: list[Sample]) -> Iterator[Problem]:
    defective = [sample for sample in samples if sample.label]
    bare = [sample for sample in defective if sample.mask_path is None]
    if bare and len(bare) == len(defective):
        expected = layout.expected_mask(bare[0])
        what = f"no masks: what a model marks in these images cannot be measured; one would be {expected}"
        yield Problem("warning", test_folder, what)
    else:
        total = Counter(sample.defect_type for sample in defective)
        for defect_type, count in Counter(sample.defect_type for sample in bare).items():
            first = next(sample for sample in bare if sample.defect_type == defect_type)
            what = f"has no mask; expected {layout.expected_mask(first)}. Pixels are measured without {count} of the "
            what += f"{total[defect_type]} images of {defect_type}"
            yield Problem("warning", first.path, what)


def _check_masks(layout: Layout, samples: list[Sample], found: dict[Path, _Found]) -> Iterator[Problem]:
    for sample in samples:
        if sample.mask_path is None or sample.marking is not None:
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
            what = f"marks no pixel above {layout.mask_threshold}, but {image.name} is called defective"
            yield Problem("warning", sample.mask_path, what)
    if ones := [path for path, one in found.items() if one.of_ones]:
        what = f"{len(ones)} mask(s) hold 0 and 1 alone, {ones[0].name} the first: 1 is read as defective"
        yield Problem("warning", ones[0].parent, what)


def _marking_problem(sample: Sample, image: _Found) -> Problem | None:
    """What is wrong with how a list marks an image, which was opened."""
    width, height = image.size
    try:
        if read_truth(sample, 0, (height, width))[0].any():
            return None
        return Problem("warning", sample.path, "nothing is marked in it, but it is called defective")
    except (DataError, OSError) as error:
        return _failed(sample.mask_path, error).problem


def _check_roi(path: Path, sizes: list[tuple[int, int]]) -> Iterator[Problem]:
    if not path.is_file():
        return
    try:
        _require_bytes(path)
        read_roi(path, sizes)
    except (DataError, OSError) as error:
        yield _failed(path, error).problem


def _check_copies(folder: Path, train: list[Path], found: dict[Path, _Found]) -> Iterator[Problem]:
    """Training images that are one image: what is to be learned is less than their number says."""
    first: dict[bytes, Path] = {}
    copies = [path for path in train if (digest := found[path].digest) and first.setdefault(digest, path) != path]
    if copies and len(first) == 1:
        yield Problem("warning", folder, f"all {len(train)} images are the same: there is one good image to learn from")
    elif copies and len(copies) >= MANY_COPIES * len(train):
        twin = first[found[copies[0]].digest]
        what = (
            f"{len(copies)} of {len(train)} images are copies of others ({copies[0].name} of {twin.name} the first); "
        )
        yield Problem("warning", folder, what + "copies in training and validation make the model look better")


def _check_reading(folder: Path, paths: list[Path], found: dict[Path, _Found], depth: int) -> Iterator[Problem]:
    """What is not seen of images that can be read: values above the bit depth, further pages."""
    top = (1 << depth) - 1
    above = [path for path in paths if (found[path].largest or 0) > top]
    if above:
        largest = max(found[path].largest for path in above)
        what = f"{len(above)} image(s) have values up to {largest}, above the {top} of {depth} bits, {above[0].name} "
        yield Problem("warning", folder, what + "the first; they are clipped. --bit-depth sets another depth")
    if several := [path for path in paths if found[path].pages > 1]:
        what = (
            f"{len(several)} file(s) have more than one page, {several[0].name} the first ({found[several[0]].pages})"
        )
        yield Problem("warning", folder, f"{what}; only the first page is read")


def _check_duplicates(groups: Groups, found: dict[Path, _Found]) -> Iterator[Problem]:
    trained = {found[path].digest: path for path in groups["train", GOOD] if found[path].digest}
    for (split, _), pairs in groups.items():
        for path in pairs if split == "test" else ():
            if twin := trained.get(found[path].digest):
                yield Problem("error", path, f"is the same image as {twin}; a test image must not be trained on")


def _check_known(known: list[Sample], groups: Groups, found: dict[Path, _Found]) -> Iterator[Problem]:
    """Known defects that are learned from or measured on too."""
    chooses = {found[one.path].digest: one.path for one in known if found[one.path].digest}
    lengths = {path.stat().st_size for path in chooses.values()}
    what = {"train": "image to learn from, as if it were good", "test": "test image"}
    for (split, _), pairs in groups.items():
        for path in pairs if split in what and chooses else ():
            digest = found[path].digest
            if digest is None and not found[path].problem and path.stat().st_size in lengths:
                digest = hashlib.sha256(path.read_bytes()).digest()
            if twin := chooses.get(digest):
                message = f"is the {what[split]} {path} too; a known defect chooses, and is neither learned from nor "
                yield Problem("error", twin, message + "measured on: remove it from one of the two")


def _look(path: Path, may_open: bool) -> _Found:
    """Decode one image whole, because only that shows a truncated one; or only ask for its length."""
    try:
        if not may_open:
            _require_bytes(path)
            return _Found()
        content = path.read_bytes()
        _require_bytes(path)
        header = read_header(path, content)
        decoded = read_image(path, content)
        return _Found(
            (header.width, header.height),
            header.mode,
            hashlib.sha256(content).digest(),
            largest=decoded.largest,
            pages=decoded.pages,
        )
    except (DataError, OSError) as error:
        return _failed(path, error)


def _look_mask(path: Path, may_open: bool, threshold: int) -> _Found:
    try:
        _require_bytes(path)
        if not may_open:
            return _Found()
        mask = read_mask(path, threshold)
        height, width = mask.marked.shape
        return _Found(size=(width, height), blank=not mask.marked.any(), of_ones=mask.of_ones)
    except (DataError, OSError) as error:
        return _failed(path, error)


def _require_bytes(path: Path) -> None:
    if path.stat().st_size == 0:
        raise DataError(f"{path}: is empty (0 bytes); replace or remove it")


def _as_problem(line: str, otherwise: Path) -> Problem:
    path, separator, message = line.partition(": ")
    return Problem("error", Path(path), message) if separator else Problem("error", otherwise, line)


def _failed(path: Path, error: Exception) -> _Found:
    message = str(explained(path, error) if isinstance(error, OSError) else error).removeprefix(f"{path}: ")
    return _Found(problem=Problem("error", path, message))


def _summarise(
    category: str, split: str, defect_type: str, pairs: dict, found: dict[Path, _Found], depth: int
) -> tuple:
    sizes = [found[path].size for path in pairs if found[path].size]
    modes = sorted({found[path].mode for path in pairs if found[path].mode})
    spans = [
        f"{min(side)}" if min(side) == max(side) else f"{min(side)}–{max(side)}" for side in zip(*sizes, strict=True)
    ]
    extent = ("×" if len(set(sizes)) == 1 else " × ").join(spans)
    masks = sum(mask is not None for mask in pairs.values())
    wide = [f"read as {depth} bits"] if any(found[path].largest is not None for path in pairs) else []
    return category, split, defect_type, len(pairs), masks, extent, ", ".join([*modes, *wide])
