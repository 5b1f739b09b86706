"""What a layout says about a dataset root, whichever dataset it is."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from msad.data_io.files import list_folders
from msad.data_io.layouts import known
from msad.data_io.layouts.faults import ROI, good_image_faults, test_faults
from msad.data_io.layouts.sample import GOOD, Sample
from msad.data_io.layouts.settings import refuse_unknown
from msad.data_io.report import Problem


class Layout(ABC):
    """How one dataset is distributed. Answers by names on disk and by the dataset's own lists; decodes no image.

    Attributes
    ----------
    name : what `--layout` and the configuration call it.
    signature : what a root must hold to be recognised, for messages.
    general : whether it is only thought of where no layout of one certain dataset fits.
    good : what the folder of good images is called among those of the types of defect.
    mask_threshold : pixels of a mask above it are defective; 0 where a dataset numbers its defects from 1.
    test_needs_opening : whether a file of the test split must be opened to tell its good images from the defective.
    expects_test : what test images would look like, for messages.
    """

    name: str
    signature: str
    general = False
    good = GOOD
    mask_threshold = 0
    test_needs_opening = False
    expects_test = "good and defective ones"

    def with_settings(self, text: str, settings: Mapping[str, Sequence[str]]) -> Layout:
        """The layout with what `msad.data_io.layouts.settings.parted` found in its whole name; most have no settings.

        Raises
        ------
        DataError : it has no such setting.
        """
        refuse_unknown(self.name, settings, ())
        return self

    @abstractmethod
    def categories(self, root: Path) -> list[str]:
        """Names of the categories, sorted; empty where the root is not in this layout."""

    @abstractmethod
    def train(self, root: Path, category: str) -> list[Path]:
        """All good images that may be learned from, sorted; those of `validation` are among them."""

    @abstractmethod
    def test(self, root: Path, category: str) -> list[Sample]:
        """The test images, good ones first, then by type of defect and name."""

    @abstractmethod
    def train_folder(self, root: Path, category: str) -> Path:
        """Where the good training images belong, for messages."""

    @abstractmethod
    def test_folder(self, root: Path, category: str) -> Path:
        """Where the test images belong, for messages."""

    @abstractmethod
    def expected_mask(self, sample: Sample) -> str:
        """What the mask of a defective test image should be called, for messages."""

    def roi(self, root: Path, category: str) -> Path:
        """Where the mask of a category's region of interest may lie; most datasets have none."""
        return root / category / ROI

    def validation(self, root: Path, category: str) -> list[Path]:
        """Good images that are set apart for validation; empty where there are none."""
        return []

    def validation_folder(self, root: Path, category: str) -> Path:
        """Where the images belong that help to choose, see `msad.data_io.layouts.known`."""
        return root / category / known.FOLDER

    def known_defects(self, root: Path, category: str) -> list[Sample]:
        """The defective images that help to choose, by type of defect and name."""
        folder = self.validation_folder(root, category)
        types = known.type_folders(folder, self.good)
        truth = folder / known.TRUTH
        return [one for part in types for one in known.typed_samples(part, self.masks_in(truth / part.name))]

    def masks_in(self, folder: Path) -> known.Masks:
        """The masks of one type of defect."""
        return known.masks_in(folder)

    def known_faults(self, root: Path, category: str) -> Iterator[Problem]:
        """What is wrong by names alone with the known defects."""
        folder = self.validation_folder(root, category)
        yield from known.known_faults(folder, self.good, self.masks_in)
        if (folder / self.good).is_dir() and not self.validation(root, category):
            what = "is ignored: good images to validate on are held out from those to learn from"
            yield Problem("warning", folder / self.good, f"{what}; put them into {self.train_folder(root, category)}")

    def faults(self, root: Path, category: str) -> Iterator[Problem]:
        """What is wrong by names alone; whatever opening images shows is `msad.data_io.check`'s part."""
        folder = self.train_folder(root, category)
        yield from good_image_faults(folder, len(self.train(root, category)))
        if not self.test_needs_opening:
            yield from test_faults(self.test_folder(root, category), self.test(root, category))

    def strange_folders(self, root: Path) -> Iterator[Problem]:
        """Folders beside the categories that the layout does not know."""
        known = {*self.categories(root), *self.folders_beside_categories}
        for folder in list_folders(root):
            if folder.name not in known:
                yield Problem("warning", folder, f"is no category ({self.signature}) and is ignored")

    folders_beside_categories: tuple[str, ...] = ()


def hold_out(paths: Sequence[Path], share: float, leave: int = 0) -> tuple[list[Path], list[Path]]:
    """Cut images in two by the hash of their names: the same on every machine, whatever order they are listed in.

    Parameters
    ----------
    paths : the images.
    share : of them held out, in (0, 1); at least one.
    leave : images that must remain; where fewer than that and one are there, none is held out.

    Returns
    -------
    kept, held_out : both in the order of `paths`.
    """
    count = max(0, min(max(1, round(share * len(paths))), len(paths) - leave))
    ranked = sorted(paths, key=lambda path: hashlib.sha256(path.name.encode()).digest())
    held_out = set(ranked[:count])
    return [path for path in paths if path not in held_out], [path for path in paths if path in held_out]
