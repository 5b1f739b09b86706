"""What a job is trained and validated on, as one value: caches, resuming, comparing and the champion go by it alone.

Two jobs with one identity see the same images, in the same order and cut in two at the same place, and draw the same
synthetic defects, views and noise from them: their scores compare, and what is kept for one serves the other. How the
files are called and where they lie is no part of it, for neither changes what is seen; the names are there to say in
words what has changed.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msad.data_io.cache import digests
from msad.data_io.known_defects import KnownDefectFiles
from msad.data_io.layout import find_layout
from msad.data_io.roi import find_roi
from msad.data_io.shape import square_side
from msad.data_io.splits import GoodSplit, split_good_images
from msad.data_io.wide import FULL

if TYPE_CHECKING:  # what asks for an identity need not load torch
    from msad.training.job_config import JobConfig

DRAWN_BY = {
    "pixels": "msad.data_io.cache:PIXELS_VERSION",
    "photographs": "msad.data_io.photographs:VERSION",
    "appearance": "msad.models.synthesis.appearance:VERSION",
    "nuisances": "msad.models.synthesis.nuisances:VERSION",
    "noise": "msad.models.synthesis.corruptions:NOISE_VERSION",
    "synthetic_defects": "msad.models.synthesis.synthetic_defects:VERSION",
    "features": "msad.training.batches:VERSION",
    "validation": "msad.models.scoring:VERSION",
}
"""Where the version of each thing that is made of images stands, scores included: beside the code that makes it."""

_DECISIVE = ("seed", "image_size", "view_size", "bit_depth", "train_on_defects")  # fields of a job
_IMAGES = ("train", "validation", "known", "taught")
NAMED = 3  # files of each kind that are named where identities differ


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a job sees.

    Parameters
    ----------
    train, validation
        sha256 of each image's content in hexadecimal digits, in the order in which the job sees them.
    image_size, view_size
        Of the images, as `JobConfig.image_size`; and of what the network sees at once, as `JobConfig.view_size`, of
        which smoothing and the sizes of synthetic defects are shares.
    seed
        Of the cut and of all that is drawn.
    layout
        The dataset's, see `msad.data_io.layout`; never `auto`.
    bit_depth
        As which files of more than 8 bits are read, see `msad.data_io.wide`.
    versions
        See `versions`.
    roi
        sha256 of the mask of the region of interest; None where there is none.
    known, taught
        sha256 of each known defect's content: of those that help to choose, and of those that are trained on.
    truth
        Type of defect and sha256 of the mask (`-`: none) of each of both, with a space between them.
    train_names, validation_names, known_names, taught_names
        The images' paths below the dataset's root, in the same order; not compared.

    A further field that decides what is seen belongs here, compared and with a default: kept identities lack it.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    image_size: int | str
    view_size: int
    seed: int
    layout: str
    versions: Mapping[str, int]
    train_names: tuple[str, ...] = field(compare=False)
    validation_names: tuple[str, ...] = field(compare=False)
    bit_depth: int = FULL
    roi: str | None = None
    known: tuple[str, ...] = ()
    taught: tuple[str, ...] = ()
    truth: tuple[str, ...] = ()
    known_names: tuple[str, ...] = field(default=(), compare=False)
    taught_names: tuple[str, ...] = field(default=(), compare=False)

    @functools.cached_property
    def digest(self) -> str:
        """64 hexadecimal digits, equal exactly where identities are."""
        compared = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.compare}
        if self.roi is None:  # as in those that were kept before there could be one
            del compared["roi"]
        text = json.dumps({**compared, "versions": dict(self.versions)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def key(self, name: str) -> str:
        """Return the key of what is kept of this in a cache, under a name that says all else that it depends on."""
        return f"{name} {self.digest}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; the images are lines as `sha256sum` writes them."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if not f.name.endswith("_names")}
        images = {
            name: [f"{digest}  {file}" for digest, file in zip(values[name], names, strict=True)]
            for name, names in self._named()
        }
        return {"digest": self.digest, **values, "versions": dict(self.versions), **images}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Identity:
        """Rebuild from `to_dict`; what an older version has kept has the defaults of fields that it did not know."""
        fields = {f.name for f in dataclasses.fields(cls)}
        known = {name: value for name, value in values.items() if name in fields}
        known["truth"] = tuple(values.get("truth", ()))
        for name in _IMAGES:
            lines = [line.partition("  ") for line in values.get(name, ())]
            known[name] = tuple(digest for digest, _, _ in lines)
            known[f"{name}_names"] = tuple(file for _, _, file in lines)
        return cls(**known)

    def changes_from(self, before: Identity) -> list[str]:
        """Return in words how this identity differs from an earlier one, a line each; empty where they are equal.

        Of images that were changed, added or removed the first ones are named.
        """
        if self == before:
            return []
        lines = _image_changes(before._contents(), self._contents())
        compared = [f.name for f in dataclasses.fields(self) if f.compare and f.name not in _IMAGES]
        for name in compared:
            old, new = getattr(before, name), getattr(self, name)
            if name == "versions":
                lines += [
                    f"{part} of version {new.get(part, 'none')} instead of {old.get(part, 'none')}"
                    for part in sorted({*old, *new})
                    if old.get(part) != new.get(part)
                ]
            elif name == "roi" and old != new:
                how = "added" if old is None else "removed" if new is None else "changed"
                lines.append(f"the region of interest was {how}")
            elif name == "truth" and old != new:
                lines.append("known defects have other masks or types")
            elif old != new:
                lines.append(f"{name} {new} instead of {old}")
        # The same files under the same names, cut elsewhere, or under others that sort otherwise.
        return lines or ["the same images in another order, or divided otherwise into training and validation"]

    def _contents(self) -> dict[str, str]:
        parts = [zip(names, getattr(self, name), strict=True) for name, names in self._named()]
        return dict(itertools.chain.from_iterable(parts))

    def _named(self) -> list[tuple[str, tuple[str, ...]]]:
        """Return the fields that hold images, with the images' names."""
        return [(name, getattr(self, f"{name}_names")) for name in _IMAGES]


def identity_of(
    job: JobConfig, dataset: Path, layout: str, cache: Path | str | None, split: GoodSplit | None = None
) -> Identity:
    """Return what a job sees of a dataset as it is now; its `split` need not be given. See `identify`."""
    settings = {name: getattr(job, name) for name in _DECISIVE}
    return identify(dataset, job.category, **settings, layout=layout, cache=cache, split=split)


def identify(
    dataset: Path | str,
    category: str,
    *,
    seed: int,
    image_size: int | str,
    view_size: int | None = None,
    bit_depth: int = FULL,
    train_on_defects: bool = False,
    layout: str = "auto",
    cache: Path | str | None = None,
    split: GoodSplit | None = None,
) -> Identity:
    """Return the identity of jobs on a category; opens no test file.

    Parameters
    ----------
    dataset, category, seed, layout
        See `msad.data_io.splits.split_good_images`.
    image_size, view_size
        See `Identity`; `view_size` of None is the image's own.
    train_on_defects
        Whether some of the known defects are trained on, see `msad.data_io.known_defects.KnownDefectFiles.divided`.
    cache
        Spares reading unchanged files again; None for `msad.data_io.cache.default_cache_dir()`.
    split
        The category's, where it is there already.

    Raises
    ------
    msad.data_io.errors.DataError
        No such dataset or category; images that cannot be read.
    """
    split = split or split_good_images(dataset, category, seed, layout=layout)
    root, found = Path(dataset), find_layout(dataset, layout)
    roi = find_roi(dataset, split.category, layout)
    known, taught = KnownDefectFiles.find(dataset, split.category, layout).divided(train_on_defects)

    def names(paths: Iterable[Path]) -> tuple[str, ...]:
        return tuple(path.relative_to(root).as_posix() for path in paths)  # layouts build paths upon the root

    return Identity(
        train=tuple(digests(split.train_paths, cache)),
        validation=tuple(digests(split.validation_paths, cache)),
        image_size=image_size,
        view_size=view_size or square_side(image_size),
        seed=seed,
        layout=found.name,
        versions=versions(),
        train_names=names(split.train_paths),
        validation_names=names(split.validation_paths),
        bit_depth=bit_depth,
        roi=digests([roi], cache)[0] if roi else None,
        known=tuple(known.digests(cache)),
        taught=tuple(taught.digests(cache)),
        truth=tuple(
            f"{defect_type} {mask}"
            for part in (known, taught)
            for defect_type, mask in zip(part.defect_types, part.mask_digests(cache), strict=True)
        ),
        known_names=names(known.paths),
        taught_names=names(taught.paths),
    )


def digest_of(identities: Iterable[Identity]) -> str:
    """Return the digest of what a job sees: of one category its identity's own, of several that of all in order."""
    first, *others = (identity.digest for identity in identities)
    return hashlib.sha256("".join([first, *others]).encode()).hexdigest() if others else first


def versions() -> dict[str, int]:
    """Return the version of everything that is made of images, by its name in `DRAWN_BY`."""
    places = {name: place.partition(":") for name, place in DRAWN_BY.items()}
    return {name: getattr(importlib.import_module(module), constant) for name, (module, _, constant) in places.items()}


def _image_changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Say which images were changed, removed, added and renamed, from their contents' digests by name."""
    gone = {name: content for name, content in before.items() if name not in after}
    come = {name: content for name, content in after.items() if name not in before}
    moved = {*gone.values()} & {*come.values()}
    kinds = {
        "changed": [name for name in before if name in after and before[name] != after[name]],
        "removed": [name for name, content in gone.items() if content not in moved],
        "added": [name for name, content in come.items() if content not in moved],
        "renamed": [name for name, content in gone.items() if content in moved],
    }
    return [_listed(kind, names) for kind, names in kinds.items() if names]


def _listed(kind: str, names: list[str]) -> str:
    count = f"1 image {kind}" if len(names) == 1 else f"{len(names)} images {kind}"
    more = ", ..." if len(names) > NAMED else ""
    return f"{count}: {', '.join(sorted(names)[:NAMED])}{more}"
