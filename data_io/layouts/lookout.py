"""Manifests of Amazon Lookout for Vision: SageMaker Ground Truth's augmented manifests, with masks where there are any.

ROOT/**/*.manifest     a json object per line: the image's place on S3, its label, and the place of its mask

{"source-ref": "s3://bucket/train/1.png", "anomaly-label": 1,
 "anomaly-label-metadata": {"class-name": "anomaly", "type": "groundtruth/image-classification", ...},
 "anomaly-mask-ref": "s3://bucket/masks/1.png",
 "anomaly-mask-ref-metadata": {"internal-color-map": {"0": {"class-name": "BACKGROUND", "hex-color": "#ffffff"}, ...},
  "type": "groundtruth/semantic-segmentation", ...}}

Lookout for Vision Developer Guide, "Creating a manifest file". The images are read from the root, downloaded as they
lie on S3, from whichever folder on (`aws s3 sync s3://bucket/folder ROOT`). A manifest that has test in its name or its
folder's holds the test, one with train the training images, whose anomalies are known defects; one alone, as of a
project with a single dataset, holds both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msad.data_io.errors import DataError
from msad.data_io.layouts.annotated import Annotated, Row
from msad.data_io.layouts.sample import Sample
from msad.data_io.markings import ColourMask

IMAGE, CLASSES, MASKS = "source-ref", "groundtruth/image-classification", "groundtruth/semantic-segmentation"
BACKGROUND, WHITE = "background", "#ffffff"


class Lookout(Annotated):
    """Labels and masks by the lines of manifests."""

    name = "lookout"
    signature = "a .manifest with source-ref and a label in every line"
    patterns = ("**/*.manifest",)
    settings_known = (*Annotated.settings_known, "label")

    def expected_mask(self, sample: Sample) -> str:
        return "the place of a mask in the manifest (anomaly-mask-ref)"

    def read(self, file: Path, product: Path) -> list[Row]:
        lines = _lines(file)
        attribute = self._attribute(file, lines)
        labels = [_label(line, attribute) for line in lines]
        if bare := [number for number, label in enumerate(labels, 1) if label is None]:
            raise DataError(
                f"{file}: {len(bare)} lines have no label {attribute}, line {bare[0]} the first; label these, or "
                "remove the lines"
            )
        good, split = self.good_labels({*labels}), self.split_of(None, file, product)
        images = self._places(file, product, [line[IMAGE] for line in lines])
        named = [_mask_of(line) for line in lines]
        masks = iter(self._places(file, product, [one[0] for one in named if one]))
        found = []
        for path, label, mask in zip(images, labels, named, strict=True):
            place = next(masks) if mask else None
            sample = Sample(path)
            if label not in good:
                defect_type = " + ".join(mask[1]) if mask and mask[1] else label
                marking = ColourMask(mask[2]) if mask else None
                sample = Sample(path, defect_type.replace("/", "-"), place, marking)
            found.append(Row(None, split, sample))
        return found

    def _attribute(self, file: Path, lines: list[dict]) -> str:
        """The name of the label among a line's entries."""
        if said := self.said("label"):
            return said
        names = {
            name.removesuffix("-metadata")
            for line in lines
            for name, entry in line.items()
            if isinstance(entry, Mapping) and entry.get("type") == CLASSES
        }
        if len(names) == 1:
            return names.pop()
        several = f"there are {' and '.join(sorted(names))}" if names else "no line has one"
        raise DataError(
            f"{file}: which entry is the label? {several}; say its name with --layout {self.more('label=NAME')}"
        )

    def _places(self, file: Path, product: Path, references: list[str]) -> list[Path]:
        """Where files on S3 lie below the product's folder: so many of their folders left out as finds most of them."""
        parts = [_parts(reference, file) for reference in references]
        if not parts:
            return []

        def placed(left_out: int) -> list[Path]:
            return [product.joinpath(*one[min(left_out, len(one) - 1) :]) for one in parts]

        counts = [sum(path.is_file() for path in placed(left_out)) for left_out in range(max(map(len, parts)))]
        if not max(counts):
            raise DataError(
                f"{file}: {references[0]} and the others are not below {product}; download them, with the folders "
                "that they lie in (aws s3 sync)"
            )
        return placed(counts.index(max(counts)))


def _lines(file: Path) -> list[dict]:
    try:
        texts = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}); download it again") from error
    lines = []
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{file}: line {number} is no json ({error.msg}); download it again") from error
        if not isinstance(line, dict) or not isinstance(line.get(IMAGE), str):
            raise DataError(f"{file}: line {number} has no {IMAGE}; each line names an image by it")
        lines.append(line)
    if not lines:
        raise DataError(f"{file}: is empty; it needs a line per image")
    return lines


def _label(line: Mapping[str, Any], attribute: str) -> str | None:
    entry = line.get(f"{attribute}-metadata")
    if isinstance(entry, Mapping) and entry.get("class-name"):
        return str(entry["class-name"])
    return None if line.get(attribute) is None else str(line[attribute])


def _mask_of(line: Mapping[str, Any]) -> tuple[str, list[str], tuple[int, int, int]] | None:
    """The place of a line's mask, the names of what it marks, and its background's colour; None where there is none."""
    for name, entry in line.items():
        reference = line.get(name.removesuffix("-metadata"))
        if isinstance(entry, Mapping) and entry.get("type") == MASKS and isinstance(reference, str):
            colours = entry.get("internal-color-map") or {}
            kinds = [(str(kind.get("class-name", "")), kind.get("hex-color", WHITE)) for kind in colours.values()]
            background = next((colour for kind, colour in kinds if kind.lower() == BACKGROUND), WHITE)
            names = sorted(kind for kind, _ in kinds if kind and kind.lower() != BACKGROUND)
            return reference, names, _rgb(background)
    return None


def _rgb(colour: str) -> tuple[int, int, int]:
    digits = colour.removeprefix("#")
    try:
        red, green, blue = bytes.fromhex(digits)
    except ValueError:
        raise DataError(
            f"the colour '{colour}' of a mask's background is not of the form #ffffff; mend the manifest"
        ) from None
    return red, green, blue


def _parts(reference: str, file: Path) -> list[str]:
    """The folders and the name of a file on S3, without its bucket."""
    _, scheme, rest = reference.rpartition("://")
    parts = [part for part in rest.split("/") if part]
    parts = parts[1:] if scheme else parts
    if not parts or ".." in parts:
        raise DataError(f"{file}: {reference} is no place of an image; mend the manifest")
    return parts
