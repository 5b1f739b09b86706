"""What a kept sweep is resumed with: its own plan, checked against the images and the code that are there now.

Trials that were judged on other images do not compare, so a study never goes on with others: it is refused, or started
anew beside its old trials, which keep their records.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.trial import TrialState

from msad.data_io.errors import DataError
from msad.data_io.layout import list_categories
from msad.data_io.wide import FULL
from msad.errors import ConfigError
from msad.search.config import SweepConfig
from msad.search.preflight import check_free_space, check_images, check_model, prepare, suited
from msad.search.slow_trials import SLOW, trials_due
from msad.search.sweep_plan import Code, Seen, StudyPlan, SweepPlan, read_plan, seeds, seen
from msad.training.identity import Identity, identity_of
from msad.workspace import Workspace

ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
RESTART = "--restart-changed"


@dataclass(frozen=True)
class Resumed:
    """How a sweep goes on.

    Its configuration and plan, the categories that have something left to do, the studies that others have taken the
    place of, and what a person is to be told.
    """

    config: SweepConfig
    plan: SweepPlan
    going_on: frozenset[str]
    replaced: tuple[StudyPlan, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def whole(cls, config: SweepConfig, plan: SweepPlan, *notes: str) -> Resumed:
        """Return how a sweep begins: with everything left to do."""
        return cls(config, plan, frozenset(plan.categories), notes=notes)

    def told(self) -> list[str]:
        """Return the lines that a person is told before the first trial."""
        jobs = {job.category: job for study in self.plan.studies for job in study.job.of_products()}
        unsearched = [name for name, space in self.plan.spaces.items() if self.config.trials and not space]
        return [
            *self.notes,
            *(f"warning: {warning}" for warning in self.plan.warnings),
            *(
                f"{category}: image files of more than 8 bits are read as {job.bit_depth} bits (--bit-depth)"
                for category, job in jobs.items()
                if job.bit_depth != FULL
            ),
            *(
                f"{category}: images are worked on at {job.image_size} pixels, height x width (--image-size)"
                for category, job in jobs.items()
                if isinstance(job.image_size, str)
            ),
            *(
                f"{category}: of each image only its region of interest counts (roi.png)"
                for category, job in jobs.items()
                if self.plan.identity(job).roi
            ),
            *(f"{name} has nothing to search: it is trained once, as it is" for name in unsearched),
        ]


def take_up(
    config: SweepConfig, workspace: Workspace, cache: Path, *, trials: int | None = None, restart_changed: bool = False
) -> Resumed:
    """Check a kept sweep whose lock is held, and return how it goes on; nothing is written.

    Parameters
    ----------
    config, workspace
        As it is kept.
    cache
        Of the images' digests.
    trials
        How many each study is to have now; None leaves it.
    restart_changed
        Start the studies of a category whose images have changed anew, instead of refusing.

    Raises
    ------
    ConfigError
        `trials` are fewer than it has, or it does not search; a category is gone; images have changed, or what is drawn
        from them; an architecture cannot be built as it was.
    msad.data_io.errors.DataError, ResourceError
        As `preflight.prepare`.
    """
    kept = read_plan(workspace)
    if trials is not None:
        config = config.model_copy(update={"trials": _raised(config, trials)})
    if kept is None:
        note = "was begun by a version of msad that kept no record of its images: they are taken to be the same"
        return Resumed.whole(config, prepare(config, cache), f"{config.name} {note}")
    studies = tuple(
        dataclasses.replace(study, trials=trials) if trials is not None and study.space else study
        for study in kept.studies
    )
    check_free_space(config.storage)
    unfinished = {name for study in studies if not _finished(study, config, workspace) for name in study.categories}
    # Where what one product sees has changed, the study of several is started anew with all of them.
    going_on = frozenset(unfinished).union(*(study.categories for study in studies if study.categories & unfinished))
    changes: dict[str, list[str]] = {}
    if going_on:
        _refuse_gone(config, kept, going_on, cache)
    left = [name for name in kept.categories if name in going_on]
    report = check_images(config, left, kept.layout) if left else None
    now = _identities(studies, going_on, config, kept.layout, cache)
    for key, identity in now.items():
        if lines := identity.changes_from(kept.identities[key]):
            changes.setdefault(key[0], lines)
    replaced = tuple(study for study in studies if study.categories & changes.keys())
    if changes and not restart_changed:
        raise ConfigError(_refusal(config, changes, replaced))
    studies = tuple(study.anew(suited(study.job, config, report)) if study in replaced else study for study in studies)
    identities = {**kept.identities, **_identities(studies, going_on, config, kept.layout, cache)}
    if problems := [
        problem
        for study in {
            (study.job.architecture, study.job.image_size): study for study in studies if study.categories & going_on
        }.values()
        for problem in check_model(study.job, study.space, config.resources.workers)
    ]:
        raise ConfigError("\n".join(problems))
    here, notes = Code.here(), []
    if here.digest != kept.code[-1].digest:
        notes.append(_other_code(config.name, kept.code[-1], here))
    notes += [
        f"{study.key} is started anew: {why}; its trials so far are kept, as replaced"
        for study in replaced
        for why in [next(lines[0] for name, lines in changes.items() if name in study.categories)]
    ]
    code = kept.code if here == kept.code[-1] else (*kept.code, here)
    warnings = tuple(report.warnings()) if report else ()
    plan = dataclasses.replace(kept, studies=studies, identities=identities, code=code, warnings=warnings)
    return Resumed(config, plan, going_on, replaced, tuple(notes))


def _raised(config: SweepConfig, trials: int) -> int:
    if not config.trials:
        raise ConfigError(f"{config.name} trains fixed configurations without a search: leave --trials away")
    if trials < config.trials:
        raise ConfigError(
            f"{config.name} was given {config.trials} trials per study: --trials can only be raised, {trials} is fewer"
        )
    return trials


def _finished(study: StudyPlan, config: SweepConfig, workspace: Workspace) -> bool:
    """Return whether nothing of a study is left to train or to test."""
    if study.trials:
        if not (workspace.root / "optuna.db").exists():  # Optuna would make it
            return False
        try:
            known = optuna.load_study(study_name=study.name, storage=workspace.studies)
        except KeyError:
            return False
        ended = [trial for trial in known.get_trials(deepcopy=False, states=ENDED) if "job_id" in trial.user_attrs]
        if len(ended) < trials_due(study.trials, sum(SLOW in trial.user_attrs for trial in ended)):
            return False
    finals = [workspace.final(id, index) for id in study.rows.values() for index in range(config.final_seeds)]
    return all(final.read("test") is not None for final in finals)


def _identities(
    studies: Sequence[StudyPlan], categories: Collection[str], config: SweepConfig, layout: str, cache: Path
) -> dict[Seen, Identity]:
    """Return the identity of every job of some categories as it is now."""
    jobs = {seen(job): job for study in studies for job in seeds(study.job, config.final_seeds)}
    return {
        key: identity_of(job, config.dataset, layout, cache) for key, job in jobs.items() if job.category in categories
    }


def _refuse_gone(config: SweepConfig, kept: SweepPlan, going_on: Collection[str], cache: Path) -> None:
    """Refuse a sweep a category of which is not there any more; say which one has its images now, if any has."""
    there = list_categories(config.dataset, kept.layout)
    lines = []
    for gone in (name for name in kept.categories if name in going_on and name not in there):
        jobs = (job for study in kept.studies for job in study.job.of_products())
        job = next(job for job in jobs if job.category == gone)
        now = "removed or renamed"
        for other in (name for name in there if name not in kept.categories):
            try:
                called = dataclasses.replace(job, category=other)
                if identity_of(called, config.dataset, kept.layout, cache) == kept.identity(job):
                    now = f"called {other!r} now"
            except DataError:  # it is none that could be trained on
                continue
        lines.append(f"  {gone!r} was {now}")
    if lines:
        listed = "\n".join(lines)
        raise ConfigError(
            f"{config.dataset} lacks categories that {config.name} was begun with:\n{listed}\nGive them back "
            "their names; or start another sweep, under another --name"
        )


def _refusal(config: SweepConfig, changes: dict[str, list[str]], studies: Sequence[StudyPlan]) -> str:
    listed = "\n".join(f"  {category}: {line}" for category, lines in changes.items() for line in lines)
    return (
        f"what {config.name} is trained and judged on is not what it was when it began:\n{listed}\n"
        "Scores from before and after do not compare. Bring back what was there; or add "
        f"{RESTART} to start {', '.join(study.key for study in studies)} anew, beside the old trials, which are kept"
    )


def _other_code(name: str, before: Code, now: Code) -> str:
    if before.version != now.version:
        return f"warning: {name} was begun by msad {before.version} and goes on with {now.version}: they may differ"
    return f"warning: {name} was begun by msad {before.version}, whose files have been changed since: they may differ"
