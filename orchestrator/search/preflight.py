"""Everything that can be refused before Ray is started, all of it in one message."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from optuna.distributions import BaseDistribution

from msad.data_io.check import check
from msad.data_io.decode import height_width
from msad.data_io.errors import DataError
from msad.data_io.known_defects import KnownDefectFiles
from msad.data_io.layout import choose_categories, find_layout
from msad.data_io.report import CheckReport
from msad.data_io.shape import fitted_size, plain_size
from msad.errors import ConfigError, ResourceError
from msad.models.base import SelfTraining
from msad.models.contract import contract_problems
from msad.models.errors import ModelError, did_you_mean
from msad.models.registry import architecture, build, is_own
from msad.names import study_ids
from msad.search.config import SweepConfig
from msad.search.sweep_plan import Code, SweepPlan, plan_study, seeds, seen, study_key
from msad.search_spaces import space
from msad.training.identity import identity_of
from msad.training.job_config import JobConfig
from msad.training.parameters import known_paths
from msad.workspace import Workspace

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
    "train_on_defects": "trials would be judged on different known defects: fix it with --train-on-defects",
    "objective": "trials would be ranked by different figures: fix it with --objective",
}
"""What makes the scores of a study's trials incomparable where it is not the same in all of them, and why."""
FREE_BYTES = 500 * 2**20  # below this a sweep cannot even keep its checkpoints


def prepare(config: SweepConfig, cache: Path) -> SweepPlan:
    """Check the data, the architectures and the disk of a new sweep, and settle what it runs. Opens no test file.

    Raises
    ------
    msad.data_io.errors.DataError
        The dataset has errors, or a category is not there.
    ConfigError
        A database cannot lie in the storage's path; an architecture cannot work at this image size, or a fixed
        parameter is wrong; or one from outside does not keep to the contract of an architecture, or has no search space
        that can be used.
    ResourceError
        The disk is full.
    """
    layout = find_layout(config.dataset, config.layout).name
    config = with_names(config, layout)
    all_of_them = tuple(dict.fromkeys((*config.categories, *config.joint)))
    report = check_images(config, all_of_them, layout)
    spaces = check_models(config)
    if config.train_on_defects:
        refuse_untaught(config, all_of_them, layout)
    check_free_space(config.storage)
    _ = Workspace(config.storage / config.name).studies  # refused where a database cannot be
    asked = [config.job(category, name) for category in config.categories for name in config.architectures]
    asked += [config.joint_job(name) for name in config.architectures if config.joint]
    jobs = [suited(job, config, report) for job in asked]
    refuse_sizes(jobs, spaces, config)
    rows = [one for job in jobs for one in job.of_products()]
    ids = study_ids(dict.fromkeys(map(study_key, (*jobs, *rows))))
    studies = tuple(
        plan_study(
            job,
            spaces[job.architecture],
            config.trials,
            ids[study_key(job)],
            tuple(ids[study_key(one)] for one in job.of_products() if job.is_whole),
        )
        for job in jobs
    )
    all_jobs = {seen(job): job for study in studies for job in seeds(study.job, config.final_seeds)}
    return SweepPlan(
        studies=studies,
        identities={key: identity_of(job, config.dataset, layout, cache) for key, job in all_jobs.items()},
        layout=layout,
        code=(Code.here(),),
        warnings=tuple(report.warnings()),
    )


def with_names(config: SweepConfig, layout: str) -> SweepConfig:
    """Return a configuration with the names of the dataset's categories: what is left empty filled in."""
    joint = choose_categories(config.dataset, config.joint, layout)
    categories = choose_categories(config.dataset, config.categories or joint or None, layout)
    return config.model_copy(update={"categories": tuple(categories), "joint": tuple(joint)})


def suited(job: JobConfig, config: SweepConfig, report: CheckReport) -> JobConfig:
    """Return a job as it suits its category's images: at a size of their shape, and at their bit depth.

    Raises
    ------
    ConfigError
        Several products are trained on together, and their images do not come to one size or bit depth.
    """
    if job.is_whole:
        return _suited_together(job, [suited(one, config, report) for one in job.of_products()])
    asked = config.job(job.category, job.architecture).image_size
    size = fitted_size(asked, report.ratios.get(job.category), job.tiles.tile)
    # A network that must know the size when it is built.
    model = {**job.model, "image_size": size} if job.model.get("image_size") == job.image_size else job.model
    depth = report.bit_depths.get(job.category, job.bit_depth)
    return dataclasses.replace(job, image_size=size, bit_depth=depth, model=model)


def _suited_together(job: JobConfig, products: Sequence[JobConfig]) -> JobConfig:
    first, problems = products[0], []
    for name, what, advice in (
        ("image_size", "pixels", "--image-size HEIGHTxWIDTH, the same for all of them"),
        ("bit_depth", "bits", "--bit-depth, the same for all of them"),
    ):
        if len({getattr(one, name) for one in products}) > 1:
            listed = ", ".join(f"{one.category} at {getattr(one, name)} {what}" for one in products)
            problems.append(f"--joint: one network reads images alike, and these would be read so: {listed}")
            problems[-1] += f". Give {advice}, or leave those away that differ"
    if problems:
        raise ConfigError("\n".join(problems))
    return dataclasses.replace(job, image_size=first.image_size, bit_depth=first.bit_depth, model=first.model)


def refuse_sizes(
    jobs: Sequence[JobConfig], spaces: Mapping[str, Mapping[str, BaseDistribution]], config: SweepConfig
) -> None:
    """Refuse what an architecture cannot work at the size that suits a category, see `prepare`."""
    rectangles = {(job.architecture, job.image_size): job for job in jobs if isinstance(job.image_size, str)}
    problems = [
        f"{job.category}: {problem}"
        for job in rectangles.values()
        for problem in check_model(job, spaces[job.architecture], config.resources.workers)
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def check_images(config: SweepConfig, categories: Sequence[str], layout: str) -> CheckReport:
    """Refuse categories whose training images have errors, see `prepare`; return what else the check has found."""
    depth = config.parameters.get("bit_depth", config.bit_depth)
    report = check(config.dataset, splits=("train",), categories=categories, layout=layout, bit_depth=depth)
    errors = [problem for problem in report.problems if problem.severity == "error"]
    if errors:
        listed = "\n".join(f"  {problem.path}: {problem.message}" for problem in errors[:50])
        more = f"\n  ... and {len(errors) - 50} more" if len(errors) > 50 else ""
        raise DataError(
            f"{config.dataset} has {len(errors)} error(s); `msad data check` lists them all:\n{listed}{more}"
        )
    return report


def refuse_untaught(config: SweepConfig, categories: Sequence[str], layout: str) -> None:
    """Refuse to train on defects what cannot, or where there are too few; see `prepare`."""
    problems = [
        f"{name} learns from good images alone, and cannot be trained on defects: leave --train-on-defects away, or "
        "search architectures with a loss"
        for name in config.architectures
        if not architecture(name).loss_terms
    ]
    found = {name: KnownDefectFiles.find(config.dataset, name, layout) for name in categories}
    problems += [
        f"{name}: --train-on-defects trains on every second known defect that has a mask, and there are too few: "
        f"{sum(sample.mask_path is not None for sample in files.samples)} of {len(files)} in "
        f"{find_layout(config.dataset, layout).validation_folder(config.dataset, name)} have one; at least 2 are needed"
        for name, files in found.items()
        if not len(files.divided(True)[1])
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def check_free_space(storage: Path) -> None:
    """Refuse a folder on a full disk; see `prepare`."""
    # Nothing is made yet: a start that is refused leaves no folder.
    storage = storage.absolute()
    free = shutil.disk_usage(next(folder for folder in (storage, *storage.parents) if folder.is_dir())).free
    if free < FREE_BYTES:
        raise ResourceError(
            f"{storage.resolve()}: only {free >> 20} MiB free, a sweep needs at least {FREE_BYTES >> 20} MiB: "
            "make room, or name another --storage"
        )


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
            problems += _space_problems(name, spaces[name]) or check_model(
                config.job("category", name), spaces[name], config.resources.workers
            )
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


def check_model(job: JobConfig, ranges: Mapping[str, BaseDistribution], workers: int) -> list[str]:
    """Return what is wrong with a job's parameters, or with the deepest of the models searched at the image size."""
    name, fixed = job.architecture, job.model
    depths = ranges.get("model/depth")
    deepest = [{}] if depths is None else [{"depth": max(getattr(depths, "choices", None) or (depths.high,))}]
    try:
        models = [build(name, **{**fixed, **depth}) for depth in deepest]
    except (ModelError, TypeError) as error:
        return [str(error)]
    if isinstance(models[0], SelfTraining):
        if workers > 1:
            return [f"{name} trains itself, in one worker: leave --workers-per-trial away"]
        if job.tiles.tile:
            return [f"{name} trains itself, on whole images: tiling/tile does not suit it; leave it away"]
    elif not models[0].loss_terms and workers > 1:
        return [f"{name} looks at the images once, in one worker: leave --workers-per-trial away"]
    elif is_own(name) and (broken := contract_problems(models[0], elongated=job.sides[0] != job.sides[1])):
        return [f"{name}: {problem}" for problem in broken]
    multiples = [model.size_multiple for model in models]
    sizes = {"image size": job.image_size, "tiling/tile": job.tiles.tile}
    return [
        f"{what} {size} does not suit {name}: it must be divisible by {multiple}; the nearest is "
        f"{plain_size(tuple(max(1, round(side / multiple)) * multiple for side in height_width(size)))}"
        for multiple in multiples
        for what, size in sizes.items()
        if any(side % multiple for side in height_width(size))
    ]
