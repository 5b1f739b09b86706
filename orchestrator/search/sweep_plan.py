"""What a sweep's settings have come to, kept as `plan.json` in its folder: a resumed sweep goes by it.

Settings leave much to defaults: an architecture's epochs and parameters, the ranges of its search, the categories that
a dataset has. A later version of msad may have others, and a dataset other images; a study in the middle must not be
changed by either.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution

from msad.code_version import code_digest, code_version
from msad.errors import ConfigError
from msad.training.identity import Identity, digest_of
from msad.training.job_config import JobConfig
from msad.training.parameters import written_out
from msad.workspace import Workspace, write_atomically

FILE = "plan.json"
Seen = tuple[str, int, int | str, int, int]
"""What of a job decides what it sees of a dataset: category, seed, image size, view size and bit depth."""


@dataclass(frozen=True)
class Code:
    """A version of msad that has worked on a sweep: its name, and a digest of its files."""

    version: str
    digest: str

    @classmethod
    def here(cls) -> Code:
        """Return that of this process."""
        return cls(code_version(), code_digest())


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """One study: the job that its trials vary, with everything written out, its ranges, and how many trials it gets.

    `id` stands for it in job IDs; of one network for several products `parts` stand for what each of them makes of it,
    in their order. `generation` counts from 1 how often it has been started anew, on other images; each
    has an ID, a study of Optuna's and runs of its own, so that none takes another's for its own.
    """

    id: str
    job: JobConfig
    space: Mapping[str, BaseDistribution]
    trials: int
    generation: int = 1
    parts: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """`CATEGORY/ARCHITECTURE`."""
        return study_key(self.job)

    @property
    def rows(self) -> dict[str, str]:
        """The key and ID of each row of the leaderboard: one, or one for each of several products."""
        if not self.parts:
            return {self.key: self.id}
        return dict(zip(map(study_key, self.job.of_products()), self.parts, strict=True))

    @property
    def categories(self) -> frozenset[str]:
        """Whose images it sees."""
        return frozenset(job.category for job in self.job.of_products())

    @property
    def name(self) -> str:
        """What Optuna knows it by."""
        return self.key if self.generation == 1 else f"{self.key} #{self.generation}"

    def anew(self, job: JobConfig | None = None) -> StudyPlan:
        """Return the same study without a trial, as one that has nothing in common with this one but its settings.

        `job` is the study's as it suits the images as they are now, None: as it was.
        """
        generation = self.generation + 1

        def renewed(id: str) -> str:
            own = id if self.generation == 1 else id.removesuffix(f".{self.generation}")
            return f"{own}.{generation}"  # no architecture's name ends so, hence no other study has the ID

        ids = {"id": renewed(self.id), "parts": tuple(map(renewed, self.parts))}
        return dataclasses.replace(self, **ids, generation=generation, job=job or self.job)

    def to_dict(self) -> dict[str, Any]:
        space = {path: json.loads(distribution_to_json(range_)) for path, range_ in self.space.items()}
        known = {"id": self.id, "trials": self.trials, "generation": self.generation}
        known |= {"parts": list(self.parts)} if self.parts else {}
        return {**known, "job": self.job.to_dict(), "space": space}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StudyPlan:
        space = {path: json_to_distribution(json.dumps(range_)) for path, range_ in values["space"].items()}
        parts = tuple(values.get("parts", ()))
        return cls(**{**values, "job": JobConfig.from_dict(values["job"]), "space": space, "parts": parts})


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """What a sweep runs.

    Parameters
    ----------
    studies
        In the order in which they are shown.
    identities
        Of every job: by `Seen`, those of a winner's further seeds included.
    layout
        The dataset's; never `auto`.
    code
        The versions that have worked on the sweep, the latest last.
    warnings
        Of the check of the images, to be told now; not kept.
    """

    studies: tuple[StudyPlan, ...]
    identities: Mapping[Seen, Identity]
    layout: str
    code: tuple[Code, ...]
    warnings: tuple[str, ...] = field(default=(), compare=False)

    @property
    def categories(self) -> tuple[str, ...]:
        """Each one once."""
        return tuple(dict.fromkeys(job.category for study in self.studies for job in study.job.of_products()))

    @property
    def spaces(self) -> dict[str, Mapping[str, BaseDistribution]]:
        """What is searched, by architecture."""
        return {study.job.architecture: study.space for study in self.studies}

    def identity(self, job: JobConfig) -> Identity:
        """Return what one of the sweep's jobs sees of one category."""
        return self.identities[seen(job)]

    def digest(self, job: JobConfig) -> str:
        """Return what tells all that one of the sweep's jobs sees from what others do."""
        return digest_of(self.identity(one) for one in job.of_products())

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "layout": self.layout,
            "code": [dataclasses.asdict(code) for code in self.code],
            "studies": [study.to_dict() for study in self.studies],
            "identities": [{"category": key[0], **identity.to_dict()} for key, identity in self.identities.items()],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SweepPlan:
        """Rebuild from `to_dict`."""
        found = [(entry["category"], Identity.from_dict(entry)) for entry in values["identities"]]
        return cls(
            studies=tuple(StudyPlan.from_dict(study) for study in values["studies"]),
            identities={(name, it.seed, it.image_size, it.view_size, it.bit_depth): it for name, it in found},
            layout=values["layout"],
            code=tuple(Code(**code) for code in values["code"]),
        )

    def write(self, workspace: Workspace) -> None:
        """Keep it in a sweep's folder."""
        write_atomically(workspace.root / FILE, json.dumps(self.to_dict(), indent=1).encode())


def read_plan(workspace: Workspace) -> SweepPlan | None:
    """Return the plan in a sweep's folder, None where there is none: the sweep is older than plans.

    Raises
    ------
    ConfigError
        The file is damaged.
    """
    file = workspace.root / FILE
    try:
        return SweepPlan.from_dict(json.loads(file.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{file}: damaged, or of a later version of msad ({type(error).__name__}: {error}): bring it back from a "
            "backup, or start the sweep under another --name"
        ) from error


def seen(job: JobConfig) -> Seen:
    """Return what of a job decides what it sees."""
    return job.category, job.seed, job.image_size, job.view_size, job.bit_depth


def seeds(job: JobConfig, count: int) -> Iterable[JobConfig]:
    """Yield a job with its own seed and so many in all, as a winner is trained, as each of its products has it."""
    of_all = (dataclasses.replace(job, seed=job.seed + index) for index in range(count))
    return (one for seeded in of_all for one in seeded.of_products())


def study_key(job: JobConfig) -> str:
    """Return `CATEGORY/ARCHITECTURE`, by which people know the study that varies a job."""
    return f"{job.category}/{job.label}"


def plan_study(
    job: JobConfig, space: Mapping[str, BaseDistribution], trials: int, id: str, parts: tuple[str, ...] = ()
) -> StudyPlan:
    """Return a study's plan: `trials` of 0, and so none where there is nothing to search, train the job as it is."""
    full = written_out(job)
    # Where weights are searched, those that are not are none, and not the architecture's own.
    searched = any(path.startswith("loss_weights/") for path in space)
    settled = dataclasses.replace(
        full,
        model={name: value for name, value in full.model.items() if _is_plain(value)},
        loss_weights=job.loss_weights if searched else full.loss_weights,
    )
    settled = JobConfig.from_dict(json.loads(json.dumps(settled.to_dict())))  # as it will be read back
    return StudyPlan(id=id, job=settled, space=dict(space), trials=trials if space else 0, parts=parts)


def _is_plain(value: Any) -> bool:
    """Return whether JSON keeps a value; a default of another library's class may be anything."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(part) for key, part in value.items())
    return value is None or isinstance(value, bool | int | float | str)
