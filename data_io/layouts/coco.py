"""COCO's annotations: a json with the images, the categories of defects, and an outline per defect.

ROOT/*.json, ROOT/*/*.json, e.g. annotations/instances_train.json, or train/_annotations.coco.json as Roboflow has it

T.-Y. Lin et al., "Microsoft COCO: Common objects in context", ECCV 2014. Outlines are polygons or runs (RLE, plain or
compressed); a box alone is none, unless that is said. An image with annotations of good alone is good. Of one without
annotations nobody knows whether it is good or was not looked at: that must be said.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msad.data_io.errors import DataError
from msad.data_io.layouts.annotated import Annotated, Row
from msad.data_io.layouts.sample import Sample
from msad.data_io.markings import Outlines

UNANNOTATED = ("good", "ignored")
BOXES = ("ignored", "masks")
IMAGES = "images"  # the folder that many tools put them into


class Coco(Annotated):
    """Labels and outlines by COCO's json."""

    name = "coco"
    signature = "a json with images, annotations and categories"
    patterns = ("*.json", "*/*.json")
    settings_known = (*Annotated.settings_known, "images", "unannotated", "boxes")

    def expected_mask(self, sample: Sample) -> str:
        return "an outline (segmentation) in the json"

    def read(self, file: Path, product: Path) -> list[Row]:
        content = _content(file)
        if content is None:  # another json
            return []
        images, names = content["images"], {one["id"]: str(one["name"]) for one in content["categories"]}
        of_image: dict[Any, list[dict]] = defaultdict(list)
        for one in content["annotations"]:
            of_image[one["image_id"]].append(one)
        if unknown := of_image.keys() - {image["id"] for image in images}:
            first = min(map(str, unknown))
            raise DataError(f"{file}: has annotations of an image {first} that it does not list; mend it")
        bare = [image for image in images if not of_image[image["id"]]]
        unannotated = self._choice("unannotated", UNANNOTATED)
        if bare and unannotated is None:
            raise DataError(
                f"{file}: {len(bare)} of {len(images)} images have no annotation, and nothing says whether they are "
                f"good or were not looked at; say it with --layout {self.more('unannotated=good')}, or leave them out "
                "with unannotated=ignored"
            )
        good = self.good_labels(names.values())
        folder, split = self._folder(file, product, images), self.split_of(None, file, product)
        found = []
        for image in images:
            annotations = of_image[image["id"]]
            if not annotations and unannotated == "ignored":
                continue
            path = self.inside(folder / str(image["file_name"]), file, product)
            defects = [one for one in annotations if names[one["category_id"]] not in good]
            types = sorted({names[one["category_id"]] for one in defects})
            sample = Sample(path)
            if types:
                outlines = self._outlines(file, image, defects)
                sample = Sample(path, " + ".join(types).replace("/", "-"), outlines and file, outlines)
            found.append(Row(None, split, sample))
        return found

    def _choice(self, name: str, allowed: tuple[str, ...]) -> str | None:
        said = self.said(name)
        if said is not None and said not in allowed:
            raise DataError(f"layout {self.name}: {name} is '{said}'; it must be {' or '.join(allowed)}")
        return said

    def _folder(self, file: Path, product: Path, images: list[dict]) -> Path:
        """The folder that the images' names are relative to: the first that holds the first image."""
        if said := self.said("images"):
            return product / said
        words = [part for part in file.stem.replace(".", "_").split("_") if part]
        places = [file.parent, file.parent / IMAGES, product, product / IMAGES]
        places += [place / word for word in words for place in (product, product / IMAGES)]
        for place in places if images else ():
            if (place / str(images[0]["file_name"])).is_file():
                return place
        if not images:
            return product
        raise DataError(
            f"{file}: {images[0]['file_name']} is neither beside it nor in {product / IMAGES}; say where the images "
            f"are, below {product}, with --layout {self.more('images=FOLDER')}"
        )

    def _outlines(self, file: Path, image: Mapping[str, Any], defects: list[dict]) -> Outlines | None:
        """The outlines of an image's defects; None unless all have one, for half of a mask would be a wrong one."""
        polygons: list[tuple[float, ...]] = []
        runs: list[tuple[int, ...]] = []
        boxes = self._choice("boxes", BOXES) == "masks"
        for one in defects:
            outline = one.get("segmentation")
            if isinstance(outline, Mapping):
                counts = outline["counts"]
                runs.append(tuple(counts) if isinstance(counts, list) else _decompressed(counts))
            elif outline:
                polygons += [tuple(map(float, part)) for part in outline]
            elif boxes and one.get("bbox"):
                left, top, width, height = map(float, one["bbox"])
                right, bottom = left + width - 1, top + height - 1
                polygons.append((left, top, right, top, right, bottom, left, bottom))
            else:
                return None
        if any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
            raise DataError(f"{file}: an outline of {image['file_name']} has fewer than three points; mend it")
        return Outlines(int(image["height"]), int(image["width"]), tuple(polygons), tuple(runs))


def _content(file: Path) -> dict[str, list[dict]] | None:
    """The json of a list of annotations; None where it is something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(
            f"{file}: cannot be read as json ({error}); export it again, or name the list with file="
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        return None
    content = {name: content.get(name, []) for name in ("images", "annotations", "categories")}
    try:
        names = {one["id"]: one["name"] for one in content["categories"]}
        for image in content["images"]:
            _ = image["id"], image["file_name"], int(image["height"]), int(image["width"])
        for one in content["annotations"]:
            _ = one["image_id"], names[one["category_id"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{file}: an image, annotation or category lacks what it must have ({error!r}); mend it"
        ) from error
    return content


def _decompressed(text: str) -> tuple[int, ...]:
    """The runs of a compressed mask: 5 bits of a number a character; from the fourth on the change since two before."""
    runs: list[int] = []
    place = 0
    while place < len(text):
        number, shift, more = 0, 0, True
        while more and place < len(text):
            bits = ord(text[place]) - 48
            number |= (bits & 0x1F) << shift
            more, shift, place = bool(bits & 0x20), shift + 5, place + 1
            if not more and bits & 0x10:
                number |= -1 << shift
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
    return tuple(runs)
