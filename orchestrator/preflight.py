"""Everything that can be refused before Ray is started, all of it in one message."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from optuna.distributions import BaseDistribution

from data_io.check import check
from data_io.errors import DataError
from data_io.layout import choose_categories, find_layout
from models.base import SelfTraining
from models.contract import contract_problems
from models.errors import ModelError, did_you_mean
from models.registry import build, is_own
from orchestrator.config import SweepConfig
from orchestrator.errors import ConfigError, ResourceError
from orchestrator.identity import Identity, identify
from orchestrator.job_config import JobConfig
from orchestrator.parameters import known_paths
from search_spaces import space

OTHER_DEFECTS = (
    "trials of different sizes are judged on different synthetic defects, so their scores do not compare: fix it, and "
    "search each size in a sweep of its own"
)
NOT_SEARCHED = {
    "seed": "a study would choose the seed with the easiest validation images: fix it with --seed, and see with "
    "--final-seeds what another one changes",
    "image_size": OTHER_DEFECTS,
    "bit_depth": "it says what the files hold, and no score can choose it; set it with --bit-depth",
    "tiling/tile": OTHER_DEFECTS,
    "objective": "trials would be ranked by different figures: fix it with --objective",
}
"""What makes the scores of a study's trials incomparable where it is not the same in all of them, and why."""
FREE_BYTES = 500 * 2**20  # below this a sweep cannot even keep its checkpoints
Seen = tuple[str, int, int, int, int]
"""What of a job decides what it sees of a dataset: category, seed, image size and view size."""


@dataclass(frozen=True)
class Plan:
    """What a sweep will run: the categories, the identity of every job, the ranges searched, the name of the dataset's
    layout, the bit depth that files of more than 8 bits are read as, and what the check of the data warns of.

    An architecture without ranges has nothing to search: it is trained once, as it is.
    """

    categories: tuple[str, ...]
    identities: dict[Seen, Identity]
    spaces: dict[str, dict[str, BaseDistribution]]
    layout: str = "auto"
    bit_depths: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def job(self, config: SweepConfig, category: str, architecture: str) -> JobConfig:
        """Return the job that a study's trials vary, with what was found on its category's images."""
        return _job(config, category, architecture, self.bit_depths)

    def identity(self, job: JobConfig) -> Identity:
        """Return what one of the sweep's jobs sees, that of a winner's further seed included."""
        return self.identities[_seen(job)]

    def trials(self, config: SweepConfig, architecture: str) -> int:
        """Return how many trials its studies are given."""
        return config.trials if self.spaces[architecture] else 0


def prepare(config: SweepConfig, cache: Path) -> Plan:
    """Check the data, the architectures and the disk of a sweep. Opens no test file.

    Raises
    ------
    data_io.errors.DataError
        The dataset has errors, or a category is not there.
    ConfigError
        An architecture cannot work at this image size, or a fixed parameter is wrong; or one from outside does not keep
        to the contract of an architecture, or has no search space that can be used.
    ResourceError
        The disk is full.
    """
    layout = find_layout(config.dataset, config.layout).name
    categories = tuple(choose_categories(config.dataset, config.categories or None, layout))
    depth = config.parameters.get("bit_depth", config.bit_depth)
    report = check(config.dataset, splits=("train",), categories=categories, layout=layout, bit_depth=depth)
    errors = [problem for problem in report.problems if problem.severity == "error"]
    if errors:
        listed = "\n".join(f"  {problem.path}: {problem.message}" for problem in errors[:50])
        more = f"\n  ... and {len(errors) - 50} more" if len(errors) > 50 else ""
        raise DataError(
            f"{config.dataset} has {len(errors)} error(s); `msad data check` lists them all:\n{listed}{more}"
        )
    spaces = check_models(config)
    config.storage.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(config.storage).free
    if free < FREE_BYTES:
        raise ResourceError(
            f"{config.storage.resolve()}: only {free >> 20} MiB free, a sweep needs at least {FREE_BYTES >> 20} MiB: "
            "make room, or name another --storage"
        )
    depths = report.bit_depths
    identities = _identities(config, categories, layout, cache, depths)
    return Plan(categories, identities, spaces, layout, depths, report.warnings())


def _identities(
    config: SweepConfig, categories: tuple[str, ...], layout: str, cache: Path, depths: Mapping[str, int]
) -> dict[Seen, Identity]:
    found = {}
    for category in categories:
        for architecture in config.architectures:
            base = _job(config, category, architecture, depths)
            for index in range(config.final_seeds):
                job = dataclasses.replace(base, seed=base.seed + index)
                if _seen(job) not in found:
                    settings = {name: getattr(job, name) for name in ("seed", "image_size", "view_size", "bit_depth")}
                    found[_seen(job)] = identify(config.dataset, category, **settings, layout=layout, cache=cache)
    return found


def _job(config: SweepConfig, category: str, architecture: str, depths: Mapping[str, int]) -> JobConfig:
    job = config.job(category, architecture)
    return dataclasses.replace(job, bit_depth=depths.get(category, job.bit_depth))


def _seen(job: JobConfig) -> Seen:
    return job.category, job.seed, job.image_size, job.view_size, job.bit_depth


def check_models(config: SweepConfig) -> dict[str, dict[str, BaseDistribution]]:
    """Return what is searched for each architecture, by its slash path.

    Raises
    ------
    ConfigError
        As `prepare`.
    """
    spaces, problems = {}, []
    for name in config.architectures:
        try:
            spaces[name] = _space(config, name)
            problems += _space_problems(name, spaces[name]) or _model_problems(config, name, spaces[name])
        except ModelError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return spaces


def _space(config: SweepConfig, architecture: str) -> dict[str, BaseDistribution]:
    """Return what is searched: the architecture's ranges without what the configuration fixes."""
    if not config.trials:
        return {}
    ranges, fixed = space(architecture, config.search_spaces.get(architecture)), config.parameters_of(architecture)
    return {path: range_ for path, range_ in ranges.items() if path not in fixed}


def _space_problems(name: str, ranges: dict[str, BaseDistribution]) -> list[str]:
    """Return which searched paths an architecture's jobs do not have, or must have in common."""
    known = known_paths(name)
    return [
        f"the search space of {name} has {path!r}, which its jobs have not{did_you_mean(path, known)}"
        for path in ranges
        if path not in known
    ] + [f"the search space of {name} has {path!r}: {NOT_SEARCHED[path]}" for path in ranges if path in NOT_SEARCHED]


def _model_problems(config: SweepConfig, name: str, ranges: dict[str, BaseDistribution]) -> list[str]:
    """Return what is wrong with an architecture's fixed parameters, or with its deepest model at the image size."""
    fixed = config.job("category", name).model
    depths = ranges.get("model/depth")
    deepest = [{}] if depths is None else [{"depth": max(getattr(depths, "choices", None) or (depths.high,))}]
    try:
        models = [build(name, **{**fixed, **depth}) for depth in deepest]
    except (ModelError, TypeError) as error:
        return [str(error)]
    if isinstance(models[0], SelfTraining):
        if config.resources.workers > 1:
            return [f"{name} trains itself, in one worker: leave --workers-per-trial away"]
        if config.job("category", name).tiles.tile:
            return [f"{name} trains itself, on whole images: tiling/tile does not suit it; leave it away"]
    elif is_own(name) and (broken := contract_problems(models[0])):
        return [f"{name}: {problem}" for problem in broken]
    multiples = [model.size_multiple for model in models]
    sides = {"image size": config.image_size, "tiling/tile": config.job("category", name).tiles.tile}
    return [
        f"{what} {side} does not suit {name}: it must be divisible by {multiple}; the nearest is "
        f"{max(1, round(side / multiple)) * multiple}"
        for multiple in multiples
        for what, side in sides.items()
        if side % multiple
    ]
