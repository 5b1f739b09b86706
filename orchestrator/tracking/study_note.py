"""What a study's run says of itself in MLflow: a few lines, with links to what belongs to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msad.names import registered_name
from msad.search.study import Study
from msad.tracking.run_record import Note
from msad.tracking.ui.pages import SWEEP_ID, Pages, as_text, model_page

TRAINING = {"training": "training.png"}
PICTURES = {"gallery": "gallery.png", "ROC and PR": "roc_pr.png", "scores": "scores.png"} | TRAINING


def study_note(
    study: Study, status: str, reason: str | None, metrics: Mapping[str, float], trial: str | None = None
) -> Note:
    """Return what makes the description of a study's run, as Markdown, once the runs that it links to are known.

    Parameters
    ----------
    status, reason
        `running`, `complete` or `failed`, the last with why; of a complete one why it has no test figures, if so.
    metrics
        The run's figures under their MLflow names.
    trial
        The job ID of the trial whose model the winner's is; None where it was trained again.
    """
    counts, best = study.counts(), study.best()
    trials = f"{counts.complete} trials complete, {counts.pruned} pruned, {counts.failed} failed, of {study.trials}."
    if counts.too_slow:
        trials += f" {counts.too_slow} more were too slow, and not trained."
    trials = trials if study.trials else "One fixed configuration, without a search."
    if status == "running":
        return lambda pages: f"{trials} It is still running. {_around(pages)}"
    if status == "failed":
        return lambda pages: f"No {'winner' if study.trials else 'model'}: {reason}\n\n{trials} {_around(pages)}"
    if study.base.is_whole:
        return _joint_note(study, trials)
    model = "winner, the model of its trial itself" if trial else "winner, trained again to the end"
    figures = "\n\n".join(_figures(metrics, reason, model if study.trials else "model, trained to the end"))
    joint = study.base.joint
    chosen, key, model = best and best.user_attrs["job_id"], study.id, registered_name(study.base.category)

    pictures = PICTURES if "test_image_auroc" in metrics else TRAINING

    def write(pages: Pages) -> str:
        links = [f"[{name}]({pages.run(key, f'pictures/{file}')})" for name, file in pictures.items()]
        if chosen:
            links.append(f"[the trial that won]({pages.run(chosen)})")
        links.append(f"[registered model]({model_page(model)})")
        together = f" It is one network for {_named(joint)}." if joint else ""
        fetch = f"Fetch it: `msad pull {pages.run_id(key) or 'RUN_ID'} --to DIR`"
        # The links come first: the UI shows three lines until it is asked for more, and fades out the last ones.
        return (
            f"{' · '.join(links)}\n\n{figures}{together}\n\n{trials + ' ' if chosen else ''}{_around(pages)}\n\n{fetch}"
        )

    return write


def products_note(scores: Mapping[str, float]) -> Note:
    """Return what makes the description of a trial for several products: what it is worth for each of them."""
    listed = "\n".join(f"- {as_text(name)}: {score:.4f}" for name, score in scores.items())
    return lambda pages: f"The validation score is the mean of these:\n\n{listed}"


def _joint_note(study: Study, trials: str) -> Note:
    """Return what makes the description of the study of several products, once it has ended."""
    words = (
        f"One network for {_named(study.base.joint)}. Each has a row in the leaderboard: what it makes of the winner."
    )
    best = study.best()

    def write(pages: Pages) -> str:
        link = f"[the trial that won]({pages.run(best.user_attrs['job_id'])})\n\n" if best else ""
        return f"{link}{words}\n\n{trials} {_around(pages)}"

    return write


def _named(products: Sequence[str]) -> str:
    return ", ".join(map(as_text, products))


def _around(pages: Pages) -> str:
    return f"[Leaderboard]({pages.leaderboard}) · [the sweep's run]({pages.run(SWEEP_ID)})"


def _figures(metrics: Mapping[str, float], unmeasured: str | None, model: str) -> list[str]:
    names = {"Validation score": "validation_score", "test image AUROC": "test_image_auroc", "AU-PRO": "test_aupro_30"}
    known = [f"{words} {metrics[name]:.4f}" for words, name in names.items() if name in metrics]
    measured = any(name.startswith("test_") for name in metrics)
    test = ", and only then shown the test split" if measured else ", without test images to measure it on"
    if unmeasured:
        test = f". It is not measured: {unmeasured}"
    lines = [f"{', '.join(known)}. The {model}{test}."]
    if "test_image_auroc_mean" in metrics:
        lines.append(
            f"Over {metrics['final_seeds']:.0f} seeds the test image AUROC is "
            f"{metrics['test_image_auroc_mean']:.4f} ± {metrics['test_image_auroc_sd']:.4f} (sample sd); this run "
            "is the first seed's."
        )
    if "selection_gap" in metrics:
        lines.append(
            "Computed after the selection, for the report alone: "
            f"Spearman ρ of validation and test {metrics.get('selection_spearman', float('nan')):.2f} over "
            f"{metrics['selection_trials']:.0f} trials, gap to the best of them on test "
            f"{metrics['selection_gap']:.4f}, a random choice {metrics['selection_random']:.4f}."
        )
    return lines
