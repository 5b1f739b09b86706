"""One job's configuration: everything that decides the weights it ends with."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from msad.data_io.decode import height_width
from msad.data_io.errors import DataError
from msad.data_io.shape import parse_size, square_side
from msad.data_io.wide import BIT_DEPTHS, FULL
from msad.models.errors import did_you_mean
from msad.models.tiling import TilingConfig
from msad.names import JOINT

SCHEDULES = ("constant", "plateau", "cosine", "one_cycle")
OBJECTIVES = ("validation_score", "validation_image_auroc", "validation_pixel_ap")
MOST_NAMED = 3  # products in the name of all of them
# Dictionaries whose keys belong to an architecture; the registry and the losses check what is inside them.
OPEN_GROUPS = ("model", "loss_weights", "corruption", "augmentation", "tiling")


def joint_category(products: Sequence[str]) -> str:
    """Return what stands for several products where a job or a study has one category."""
    named = products if len(products) <= MOST_NAMED else (*products[:2], f"{len(products) - 2} more")
    return " + ".join(named)


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """One training run of an architecture on a category, or on several products together.

    Parameters
    ----------
    category, architecture
        Names; see `msad.data_io.table.list_categories` and `msad.models.registry.architectures`.
    joint
        The categories that one network is trained on together, at least two; empty: on `category` alone. With one of
        them as `category` it is what that product makes of the network, with `joint_category` the training of all.
    image_size
        What the images are resized to, in pixels: the side of a square, or `HEIGHTxWIDTH` as text.
    bit_depth
        Bits that the camera fills of image files of more than 8, one of `msad.data_io.wide.BIT_DEPTHS`.
    epochs
        Passes over the training images at most (early stopping may end sooner).
    steps
        Steps of the optimiser in all; 0: as many as the epochs take. Otherwise an epoch is no pass over the images but
        an equal part of the steps, rounded up, so that few images are trained on as long as many. Evaluations, pruning
        and early stopping go by epochs as ever; a detector that trains itself knows nothing of it.
    evaluate_every
        Epochs between two evaluations on the validation split; each is a report, a checkpoint and a possible pruning.
    batch_size
        Images per step.
    seed
        Decides initial weights, order, corruption and the validation split.
    learning_rate, weight_decay
        AdamW's step size (> 0) and decoupled weight decay (>= 0).
    schedule
        One of `constant`, `plateau` (halved when the training loss stops falling), `cosine`, `one_cycle`.
    objective
        Which validation figure picks the best epoch and steers the search; all of them are maximised.
    gradient_clip
        Largest norm of the gradient; 0 switches clipping off.
    patience
        Evaluations without a better validation score before training stops early; 0 never stops early.
    train_on_defects
        Whether every second known defect that has a mask is trained on: cut out and pasted on good images. The others
        help to choose, as all do else.
    false_positive_rate
        Share of good images above the threshold that is aimed at, in (0, 1).
    false_regions_per_image
        Regions above the pixel threshold that is aimed at in a good image, on average; above 0.
    model, loss_weights, corruption, augmentation, tiling
        The architecture's own parameters, the weight of each loss term, and the fields of `CorruptionConfig`,
        `AugmentationConfig` and `TilingConfig`. Left empty they mean the defaults.

    Raises
    ------
    ValueError
        All values out of range, in one message.
    """

    category: str
    architecture: str
    joint: tuple[str, ...] = ()
    image_size: int | str = 256
    bit_depth: int = FULL
    epochs: int = 60
    steps: int = 0
    evaluate_every: int = 5
    batch_size: int = 8
    seed: int = 0
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5
    schedule: str = "one_cycle"
    objective: str = "validation_score"
    gradient_clip: float = 1.0
    patience: int = 0
    false_positive_rate: float = 0.03
    false_regions_per_image: float = 0.1
    train_on_defects: bool = False
    model: Mapping[str, Any] = field(default_factory=dict)
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    corruption: Mapping[str, Any] = field(default_factory=dict)
    augmentation: Mapping[str, Any] = field(default_factory=dict)
    tiling: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kinds = {"int": (Integral, "a whole number"), "float": (Real, "a number")}
        values = {f.name: (getattr(self, f.name), *kinds[f.type]) for f in dataclasses.fields(self) if f.type in kinds}
        problems = [
            f"{name} is {value!r}; it must be {noun}"
            for name, (value, kind, noun) in values.items()
            if isinstance(value, bool) or not isinstance(value, kind)
        ]
        try:
            object.__setattr__(self, "image_size", parse_size(self.image_size))
        except DataError as error:
            problems.append(f"image_size: {error}")
        object.__setattr__(self, "joint", tuple(self.joint))  # JSON has lists
        if self.joint and len(set(self.joint)) < max(2, len(self.joint)):
            problems.append(f"joint is {', '.join(self.joint)}; it must be two products or more, each once")
        if not isinstance(self.train_on_defects, bool):
            problems.append(f"train_on_defects is {self.train_on_defects!r}; it must be true or false")
        if problems:
            raise ValueError("; ".join(problems))
        problems = [
            f"{name} is {getattr(self, name)}; it must be {rule}"
            for name, allowed, rule in (
                ("bit_depth", self.bit_depth in BIT_DEPTHS, f"one of {', '.join(map(str, BIT_DEPTHS))}"),
                ("epochs", self.epochs >= 1, "at least 1"),
                ("steps", self.steps >= 0, "0 (as the epochs say) or more"),
                ("evaluate_every", self.evaluate_every >= 1, "at least 1"),
                ("batch_size", self.batch_size >= 1, "at least 1"),
                ("learning_rate", self.learning_rate > 0, "above 0"),
                ("weight_decay", self.weight_decay >= 0, "0 or more"),
                ("schedule", self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
                ("objective", self.objective in OBJECTIVES, f"one of {', '.join(OBJECTIVES)}"),
                ("gradient_clip", self.gradient_clip >= 0, "0 (off) or more"),
                ("patience", self.patience >= 0, "0 (off) or more"),
                ("false_positive_rate", 0 < self.false_positive_rate < 1, "between 0 and 1"),
                ("false_regions_per_image", 0 < self.false_regions_per_image < math.inf, "above 0"),
            )
            if not allowed
        ]
        if problems:
            raise ValueError("; ".join(problems))
        if self.tiles.tile >= min(self.sides):
            raise ValueError(
                f"tiling/tile is {self.tiles.tile} and image_size {self.image_size}: a tile must be smaller than the "
                "image; raise image_size, or leave tiling/tile at 0"
            )

    @property
    def label(self) -> str:
        """The architecture as a table has it: `ARCHITECTURE (joint)` where it is trained on several products."""
        return self.architecture + JOINT if self.joint else self.architecture

    @property
    def is_whole(self) -> bool:
        """Whether it is the training of several products, and not what one of them makes of it."""
        return bool(self.joint) and self.category not in self.joint

    def of_products(self) -> tuple[JobConfig, ...]:
        """Return the job as each of its products has it: of one category, itself."""
        if not self.is_whole:
            return (self,)
        return tuple(dataclasses.replace(self, category=name) for name in self.joint)

    @property
    def tiles(self) -> TilingConfig:
        """`tiling`, checked."""
        return TilingConfig(**self.tiling)

    @property
    def sides(self) -> tuple[int, int]:
        """`image_size` as height and width in pixels."""
        return height_width(self.image_size)

    @property
    def view(self) -> tuple[int, int]:
        """Height and width in pixels of what the network sees at once: a tile, or the image."""
        tile = self.tiles.tile
        return (tile, tile) if tile else self.sides

    @property
    def view_size(self) -> int:
        """Side in pixels of a square that has as many pixels as what the network sees at once."""
        return square_side(self.view)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, nested as the fields are."""
        values = copy.deepcopy(dataclasses.asdict(self))
        joint, steps = values.pop("joint"), values.pop("steps")
        values |= {"steps": steps} if steps else {}
        return values | ({"joint": list(joint)} if joint else {})  # most jobs, and older ones, have neither

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> JobConfig:
        """Rebuild from `to_dict`; an unknown key is refused with the nearest field's name."""
        names = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                raise ValueError(f"unknown job setting {key!r}{did_you_mean(key, names)}")
        return cls(**values)

    def with_parameters(self, parameters: Mapping[str, Any]) -> JobConfig:
        """Return a copy with slash paths set, e.g. `{"learning_rate": 1e-3, "model/base_width": 32}`."""
        values = self.to_dict()
        for path, value in parameters.items():
            group, _, key = path.partition("/")
            if not key:
                values[group] = value
            elif group in OPEN_GROUPS:
                values[group] = {**values[group], key: value}
            else:
                raise ValueError(f"unknown parameter {path!r}: only {', '.join(OPEN_GROUPS)} have parts")
        return JobConfig.from_dict(values)

    def flat(self) -> dict[str, Any]:
        """Return every value under its slash path: what MLflow records as parameters."""
        flat: dict[str, Any] = {}
        for name, value in self.to_dict().items():
            if isinstance(value, dict):
                flat |= {f"{name}/{key}": part for key, part in value.items()}
            else:
                flat[name] = value
        return flat

    def digest(self) -> str:
        """Return 12 hex digits that are equal exactly when every setting is."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]
