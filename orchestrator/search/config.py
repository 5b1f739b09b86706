"""One sweep's configuration: a validated tree that is one YAML file, or the options of one command."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from msad.addresses import public, storage_address
from msad.data_io.layout import known_layout
from msad.data_io.shape import parse_size
from msad.errors import ConfigError
from msad.models.errors import ModelError, did_you_mean
from msad.models.registry import architecture as architecture_class
from msad.models.registry import architectures as known_architectures
from msad.models.registry import default_parameters, use
from msad.names import study_id
from msad.search.misread import misread
from msad.search.plain_yaml import as_written, plain_yaml
from msad.training.job_config import JobConfig, joint_category
from msad.training.parameters import check_values, flatten, unknown_paths

MOST_BYTES = 1 << 18  # of a configuration file
FIRST_ARCHITECTURES = ("feature_ensemble",)  # tells and finds defects of more kinds than any other (benchmarks/)


class _Part(BaseModel):
    """A frozen part of the tree that refuses a key it does not know, with the nearest one it does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        if isinstance(values, dict):
            unknown = [key for key in values if key not in cls.model_fields]
            if unknown:
                fields = sorted(cls.model_fields)
                raise ValueError(
                    "; ".join(f"unknown setting {key!r}{did_you_mean(str(key), fields)}" for key in unknown)
                )
        return values


class Resources(_Part):
    """What one trial gets, and how many run at once.

    `cpus` and `gpus` may be fractions; `gpus` of None means one where the cluster has any, else none, and `auto` what
    the memory of a trial comes to, measured before the first (`cluster/trial_packing.py`). `concurrency` of None means
    as many as fit. On a cluster that adds nodes as they are asked for (`autoscaling`), both must be given: those that
    are there do not tell them, and may be none. `workers` train a trial together (`training/worker_group.py`), and each
    of them gets `cpus` and `gpus`.
    """

    cpus: float = Field(1.0, gt=0)
    gpus: float | Literal["auto"] | None = None
    workers: int = Field(1, ge=1)
    concurrency: int | None = Field(None, ge=1)
    autoscaling: bool = False

    @field_validator("gpus", mode="plain")
    @classmethod
    def _number_or_auto(cls, gpus: Any) -> float | str | None:
        try:
            if gpus in (None, "auto") or float(gpus) >= 0:
                return gpus if gpus in (None, "auto") else float(gpus)
        except (TypeError, ValueError):
            pass
        raise ValueError("it must be a number of 0 or more, or auto")

    @model_validator(mode="after")
    def _told_where_nodes_do_not_tell(self) -> Resources:
        if self.autoscaling and (self.gpus in (None, "auto") or self.concurrency is None):
            raise ValueError(
                "a cluster that scales does not tell how much a trial may ask for, or how many may run: "
                "give --gpus-per-trial and --concurrency too"
            )
        return self

    @model_validator(mode="after")
    def _workers_have_whole_gpus(self) -> Resources:
        if self.workers > 1 and (self.gpus == "auto" or 0 < (self.gpus or 0) < 1):
            raise ValueError(
                f"the workers of a trial cannot share a GPU, and {self.gpus} is less than one for each: "
                "give --gpus-per-trial 1, or --workers-per-trial 1"
            )
        return self


class SweepConfig(_Part):
    """Everything one command launches: the studies of `categories` × `architectures`.

    `layout` is the dataset's, see `msad.data_io.layout`; `auto` is told by its folders.
    `trials` of 0 trains the given `parameters` once per study, without a search (`msad train`). `categories` left empty
    means all that the dataset has. `joint` names products that each architecture is searched on once more, one network
    for all of them; then `categories` left empty means these.

    `parameters` are slash paths into the job, e.g. `{"model/base_width": 16}`, or nested, `{"model": {"base_width":
    16}}`; with a search they replace the searched ranges, and of `model/...` and `loss_weights/...` each architecture
    takes its own.
    `search_spaces` replaces the ranges of an architecture by others, named by a Python path or an entry point
    (`search_spaces.space`). `epochs` and `batch_size` of None are the architecture's own;
    `evaluate_every` of None evaluates about ten times. `image_size` of one number is a budget: as many pixels as a
    square of that side has, in the shape of each category's photographs where they have one; `HEIGHTxWIDTH` sets both
    sides (`msad.data_io.shape`). `bit_depth` is how many bits the camera fills of image files of more than 8; None
    finds it on the good training images of each category. `train_on_defects` trains on every second known defect that
    has a mask; the others help to choose, as all do else (`msad.data_io.layouts.known`).

    `final_seeds` trains each study's winner so often, with the seeds `seed`, `seed` + 1, ... and so with as many draws
    of the validation split; the first one's model is delivered. No seed trains on all good images: scoring and
    threshold need some that the network has not seen. `report_trials` measures every complete trial on the test split
    once all winners are tested, for the report on the selection alone.

    `latency_budget` is what one image may take in ms, on `latency_device` (`cpu` or `cuda`) or where trials run. A
    configuration above it is found before it is trained, does not count as a trial, and is not drawn again.

    `trial_timeout` is how many minutes a job may take from one report (an evaluation on the validation images) to the
    next: a job that takes longer hangs, and is ended. 0 waits for ever.
    """

    name: str
    dataset: Path
    layout: str = "auto"
    categories: tuple[str, ...] = ()
    joint: tuple[str, ...] = ()
    architectures: tuple[str, ...] = FIRST_ARCHITECTURES
    trials: int = Field(10, ge=0)
    epochs: int | None = Field(None, ge=1)
    evaluate_every: int | None = Field(None, ge=1)
    image_size: int | str = 256
    bit_depth: Literal[8, 10, 12, 14, 16] | None = None
    batch_size: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0)
    objective: Literal["validation_score", "validation_image_auroc", "validation_pixel_ap"] = "validation_score"
    pruner: Literal["asha", "median", "none"] = "asha"
    false_positive_rate: float = Field(0.03, gt=0, lt=1)
    false_regions_per_image: float = Field(0.1, gt=0, allow_inf_nan=False)
    train_on_defects: bool = False
    parameters: dict[str, Any] = Field(default_factory=dict)
    search_spaces: dict[str, str] = Field(default_factory=dict)
    final_seeds: int = Field(1, ge=1)
    report_trials: bool = False
    latency_budget: float | None = Field(None, gt=0, allow_inf_nan=False)
    latency_device: Literal["cpu", "cuda"] | None = None
    trial_timeout: float = Field(120.0, ge=0, allow_inf_nan=False)
    executor: Literal["auto", "direct", "train"] = "auto"
    resources: Resources = Resources()
    storage: Path = Path("sweeps")
    worker_storage: str | None = None
    tracking_uri: str | None = None
    address: str | None = None

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            raise ValueError("letters, digits, '.', '_' and '-' only, at most 64, beginning with a letter or digit")
        return name

    @field_validator("image_size", mode="before")
    @classmethod
    def _size(cls, size: Any) -> int | str:
        return parse_size(size)

    @field_validator("layout")
    @classmethod
    def _known_layout(cls, name: str) -> str:
        return known_layout(name)

    @field_validator("tracking_uri")
    @classmethod
    def _without_password(cls, address: str | None) -> str | None:
        """Keep the password out of what is written and shown; `msad.addresses` remembers it."""
        return public(address) if address else address

    @field_validator("storage", mode="before")
    @classmethod
    def _folder(cls, storage: Any) -> Any:
        if re.match(r"[a-z][a-z0-9+.-]*:/", str(storage)):  # pathlib makes one slash of two
            raise ValueError(
                "a sweep's own folder is on the machine that it is started on: give the object store as "
                "--worker-storage, and leave --storage a folder"
            )
        return storage

    @field_validator("worker_storage")
    @classmethod
    def _store(cls, address: str | None) -> str | None:
        return storage_address(address) if address else address

    @field_validator("joint")
    @classmethod
    def _several(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(names) == 1:
            raise ValueError(f"{names[0]} alone is what --categories trains on: name two products or more")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)}: named twice; leave one away")
        return names

    @field_validator("architectures")
    @classmethod
    def _known_architectures(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        problems = []
        for name in names:
            try:
                use(name)  # a person has named it here, so its code may be imported
            except ModelError as error:
                problems.append(str(error))
        ids = [study_id(name) for name in names]
        twice = sorted({name for name in names if ids.count(study_id(name)) > 1})
        if twice:
            problems.append(f"{' and '.join(twice)}: two studies would have one name; leave one away")
        if problems:
            raise ValueError("; ".join(problems))
        if not names:
            raise ValueError(f"name at least one of {', '.join(known_architectures())}")
        return names

    @field_validator("parameters", mode="before")
    @classmethod
    def _paths(cls, parameters: Any) -> Any:
        return flatten(parameters) if isinstance(parameters, Mapping) else parameters

    @field_validator("parameters")
    @classmethod
    def _numbers(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        """Read `1e-3` as the number it is: YAML 1.1 takes it for text, because it has no point."""

        def number(value: Any) -> Any:
            looks_so = isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value)
            return float(value) if looks_so else value

        return {path: number(value) for path, value in parameters.items()}

    @model_validator(mode="after")
    def _jobs_are_valid(self) -> SweepConfig:
        if self.resources.workers > 1 and self.executor == "direct":
            raise ValueError("several workers per trial need --executor train: leave direct away")
        if self.joint and self.resources.workers > 1:
            raise ValueError("a network for several products is trained by one worker: leave --workers-per-trial away")
        if self.latency_budget and not self.trials:
            raise ValueError("a budget of time chooses among trials, and there is none: leave latency_budget away")
        if self.latency_device == "cuda" and self.resources.gpus == 0:
            raise ValueError("the trials have no GPU to be timed on: give --gpus-per-trial, or --latency-device cpu")
        for name in self.search_spaces:
            if name not in self.architectures:
                hint = did_you_mean(name, self.architectures)
                raise ValueError(f"search_spaces: {name!r} is none of this sweep's architectures{hint}")
        if unknown := unknown_paths(self.parameters, self.architectures):
            raise ValueError("; ".join(unknown))
        for architecture in self.architectures:
            check_values(self.job("category", architecture))
        return self

    def joint_job(self, architecture: str) -> JobConfig:
        """Return the job that the trials of one network for all of `joint` vary.

        Steps that are an architecture's own are those of each product, as epochs are; steps that were given are all.
        """
        job = self.job(joint_category(self.joint), architecture)
        share = 1 if "steps" in self.parameters else len(self.joint)
        return dataclasses.replace(job, joint=self.joint, steps=job.steps * share)

    def job(self, category: str, architecture: str) -> JobConfig:
        """Return the job that a study's trials vary.

        This sweep's settings come before the architecture's `training_defaults`, those before `JobConfig`'s. Epochs
        that are given are passes over the images: an architecture's own number of steps gives way to them.
        """
        given = {
            "image_size": self.image_size,
            "bit_depth": self.bit_depth,
            "epochs": self.epochs,
            "evaluate_every": self.evaluate_every,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "objective": self.objective,
            "false_positive_rate": self.false_positive_rate,
            "false_regions_per_image": self.false_regions_per_image,
            "train_on_defects": self.train_on_defects,
        }
        settings = {**architecture_class(architecture).training_defaults}
        if self.epochs is not None or "epochs" in self.parameters:
            settings.pop("steps", None)
        settings |= {name: value for name, value in given.items() if value is not None}
        job = JobConfig(category=category, architecture=architecture, **settings)
        job = job.with_parameters(self.parameters_of(architecture))
        if "image_size" in default_parameters(architecture) and "image_size" not in job.model:
            # A network that must know the images' size when it is built, as some of anomalib's must.
            job = job.with_parameters({"model/image_size": job.image_size})
        if "evaluate_every" in settings or "evaluate_every" in self.parameters:
            return job
        return dataclasses.replace(job, evaluate_every=max(1, job.epochs // 10))

    def parameters_of(self, architecture: str) -> dict[str, Any]:
        """Return the fixed parameters that concern an architecture.

        With several architectures, `model/...` and `loss_weights/...` go to those that have them, so that one sweep can
        fix the width of one family beside another that has none.
        """
        names = {
            "model": default_parameters(architecture),
            "loss_weights": architecture_class(architecture).loss_terms,
        }

        def concerns(path: str) -> bool:
            group, _, key = path.partition("/")
            return group not in names or key in names[group]

        return {path: value for path, value in self.parameters.items() if concerns(path)}

    def to_yaml(self) -> str:
        """Return the resolved configuration as YAML; `load` reads it back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def make_config(values: dict[str, Any]) -> SweepConfig:
    """Validate settings; all that is wrong is named in one ConfigError."""
    try:
        return SweepConfig.model_validate(values)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            where = ".".join(str(part) for part in problem["loc"])
            text = problem["msg"].removeprefix("Value error, ")
            given = problem.get("input")
            shown = f" (given: {given!r})" if where and not isinstance(given, dict) else ""
            lines.append(f"{where}: {text}{shown}" if where else text)
        raise ConfigError("\n".join(lines)) from None


def default_name() -> str:
    """Return a sweep's name for those that are given none: the time."""
    return time.strftime("sweep-%Y%m%d-%H%M%S")


def overlay(values: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Lay options over the settings of a file: one resource or parameter replaces one entry, not all of them."""
    merged = {**values, **options}
    for name, prepared in (("resources", dict), ("parameters", flatten), ("search_spaces", dict)):
        if isinstance(values.get(name), Mapping) and isinstance(options.get(name), Mapping):
            merged[name] = {**prepared(values[name]), **prepared(options[name])}
    return merged


def load(path: Path) -> dict[str, Any]:
    """Return the settings in a YAML file, not yet validated, so that options can be laid over them.

    A second document is left out where it is the one that `msad config show` adds, with what follows from the settings.

    Raises
    ------
    ConfigError
        The file is missing, is no YAML, or holds no mapping.
    """
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path}: not a file; a configuration is a YAML file")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ConfigError(f"{path}: larger than {MOST_BYTES:,} bytes; a configuration has some dozen lines")
        values, *rest = plain_yaml(content.decode()) or [None]
        written = as_written(content.decode())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except (yaml.YAMLError, ValueError) as error:  # a date or a number that is none is a ValueError
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected settings as `key: value` lines, found {type(values).__name__}")
    if any(not isinstance(document, dict) or set(document) != {"studies"} for document in rest):
        raise ConfigError(f"{path}: holds {1 + len(rest)} YAML documents; a file is one sweep")
    if problems := misread(values, written):
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems))
    return values
