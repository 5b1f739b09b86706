"""The registered models: one per category, whose versions are winners of studies, and the alias `champion` among them.

The alias moves by itself as `champion_alias.py` has it, and by hand with `promote`.
"""

from __future__ import annotations

import getpass
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from msad.addresses import hide_secrets, public
from msad.bundle.bundle_files import CARD_FILE, DESCRIPTION_FILE
from msad.bundle.model_card import shorten
from msad.errors import ConfigError, TrackingError, first_line
from msad.names import REGISTERED, registered_name, search_filter
from msad.tracking.artifacts import artifacts
from msad.tracking.champion_alias import ALIAS, DIGITS, SCORE_TAG, comparable, holder, score_of, sought_by, take_place
from msad.tracking.run_record import JOINT_TAG
from msad.tracking.store import all_pages, connect, is_absent

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

CATEGORY_TAG = "msad.category"
COMPARED_WITH_TAG, COMPARED_TAG = "msad.compared_with", "msad.compared"
"""Of a version: the number of the champion that it was scored beside, and what came of it; see `challenge`."""


@dataclass(frozen=True)
class Promotion:
    """What `promote` did: the version that `CATEGORY@champion` is now, and the run whose model it was, if any."""

    category: str
    version: str
    before: str | None


def enter(client: MlflowClient, run: Run, category: str, card: str, score: float, tags: Mapping[str, str]) -> None:
    """Register a study's winner; it becomes `CATEGORY@champion` where that needs no more than a look at the scores.

    Parameters
    ----------
    client, run
        Where, and the winner's run, whose model is logged.
    category
        What the model is for.
    card
        Its model card: the description of the version.
    score
        The validation score.
    tags
        Of the model; those of msad become tags of the version.
    """
    take_place(client, _version(client, run, category, card, score, tags))


def promote(run_id: str, tracking_uri: str | None = None, *, reason: str = "", force: bool = False) -> Promotion:
    """Make the model of a run `CATEGORY@champion` by hand; who, when and why become tags of the version.

    Parameters
    ----------
    run_id
        Of a study or of a trial, whose model is registered by this.
    tracking_uri
        MLflow's store.
    reason
        Kept beside the name and the time.
    force
        Also where the champion is known to be better: by validation scores that compare, or scored beside it.

    Raises
    ------
    TrackingError
        There is no such run, it was deleted, or it has no model.
    ConfigError
        The champion is better, or is this run's already.
    """
    client = connect(tracking_uri)
    run = find_run(client, run_id)
    if logged_model(client, run) is None:
        raise without_model(run)
    category, score = run.data.tags["msad.category"], round(run.data.metrics["validation_score"], DIGITS)
    champion = holder(client, registered_name(category))
    if champion is not None and champion.run_id == run.info.run_id:
        raise ConfigError(f"{category}@{ALIAS} is the model of run {run.info.run_id} already: there is nothing to do")
    tags = {**run.data.tags, **sought_by(json.loads(_bundle_file(client, run, DESCRIPTION_FILE) or "{}"))}
    if champion is not None and not force and (worse := _known_worse(client, run, category, tags, score, champion)):
        raise ConfigError(f"{worse}: if you know better, say --force, and why with --reason")
    version = _version(client, run, category, _bundle_file(client, run, CARD_FILE), score, tags)
    notes = {"by": getpass.getuser(), "at": datetime.now(UTC).isoformat(timespec="milliseconds"), "because": reason}
    for name, note in notes.items():
        client.set_model_version_tag(version.name, version.version, f"msad.promoted_{name}", note)
    client.set_registered_model_alias(version.name, ALIAS, version.version)
    return Promotion(category, version.version, champion.run_id if champion else None)


def _known_worse(
    client: MlflowClient, run: Run, category: str, tags: Mapping[str, str], score: float, champion: ModelVersion
) -> str | None:
    """Return in words by what a run's model is known to be worse than the champion, None where it is not known."""
    who = f"{category}@{ALIAS} (run {champion.run_id})"
    if comparable(tags, champion.tags):
        ours, theirs = score, score_of(champion)
        words = f"the validation score {ours:.4f}, {who} has {theirs:.4f} on the same images"
    else:
        version = version_of(client, run, category)
        noted = version.tags if version and version.tags.get(COMPARED_WITH_TAG) == str(champion.version) else {}
        ours, theirs = (float(noted.get(f"{COMPARED_TAG}_{name}", "nan")) for name in ("score", "champion_score"))
        words = f"{ours:.4f} and {who} {theirs:.4f}, scored on the same images when its sweep ended"
    return f"run {run.info.run_id} has {words}" if ours < theirs else None


def find_run(client: MlflowClient, reference: str) -> Run:
    """Return a run by its ID, or by `CATEGORY@champion`.

    Raises
    ------
    TrackingError
        There is none, it was deleted, or the store does not let one see it.
    """
    from mlflow.exceptions import MlflowException

    run_id, where = reference, public(client.tracking_uri)
    try:
        if "@" in reference:
            run_id = _by_alias(client, reference)
        run = client.get_run(run_id)
    except MlflowException as error:
        if not is_absent(error):
            raise TrackingError(f"{where} does not give {reference!r}: {hide_secrets(first_line(error))}") from error
        raise TrackingError(
            f"no run {run_id!r} in {where}: `msad compare` lists the run IDs; another store is named with "
            "--tracking-uri"
        ) from None
    # A registered version outlives its run; a run that is asked for by its own ID does not.
    if run.info.lifecycle_stage == "deleted" and "@" not in reference:
        raise TrackingError(
            f"run {run_id} ({run.info.run_name}) was deleted in MLflow: restore it there (State: Deleted, Restore) or "
            f"with `mlflow runs restore --run-id {run_id}`"
        )
    return run


def _by_alias(client: MlflowClient, reference: str) -> str:
    from mlflow.exceptions import MlflowException

    category, _, alias = reference.rpartition("@")
    try:
        return client.get_model_version_by_alias(registered_name(category), alias).run_id
    except MlflowException as error:
        if not is_absent(error):
            raise
        names = sorted(filter(None, map(_category, all_pages(client.search_registered_models))))
        listed = ", ".join(f"{name}@{ALIAS}" for name in names) or "none yet: run `msad search` first"
        raise TrackingError(f"no registered model {reference!r}; known are {listed}") from None


def logged_model(client: MlflowClient, run: Run) -> LoggedModel | None:
    """Return the model that a run has logged whole, the newest of several; None where it has none."""
    return max(models_of(client, run)[0], key=lambda model: model.creation_timestamp, default=None)


def models_of(client: MlflowClient, run: Run) -> tuple[list[LoggedModel], list[LoggedModel]]:
    """Return the models that a run has logged whole, and those that a delivery has begun and not finished."""
    found = all_pages(
        client.search_logged_models,
        experiment_ids=[run.info.experiment_id],
        filter_string=search_filter(source_run_id=run.info.run_id),
    )
    whole = [model for model in found if str(model.status).endswith("READY")]
    return whole, [model for model in found if model not in whole]


def without_model(run: Run) -> TrackingError:
    """Return the error that a run has no model, with its state."""
    tags = run.data.tags
    status, reason = tags.get("msad.status", run.info.status), tags.get("msad.reason", "")
    if JOINT_TAG in tags and status == "complete":
        reason = "of several products, whose models are in the runs of the best trial's products"
    return TrackingError(
        f"run {run.info.run_id} ({run.info.run_name}) has no model: it is {status}"
        + (f" ({reason})" if reason else "")
        + "; `msad compare` lists the runs that have one"
    )


def _version(
    client: MlflowClient, run: Run, category: str, card: str, score: float, tags: Mapping[str, str]
) -> ModelVersion:
    """Return the version of a run's logged model, made where there is none; what it says is as given here."""
    name, model = registered_name(category), logged_model(client, run)
    tags = {SCORE_TAG: f"{score:.{DIGITS}f}", **{k: v for k, v in tags.items() if k.startswith("msad.")}}
    _make_registered(client, name, category)
    version = version_of(client, run, category)
    if version is None:
        return client.create_model_version(
            name,
            # Not `models:/ID`: a local store would look that up in MLflow's global tracking URI, not in its own.
            source=model.artifact_location,
            run_id=run.info.run_id,
            model_id=model.model_id,
            tags=tags,
            description=shorten(card),
        )
    for tag, value in tags.items():
        if version.tags.get(tag) != value:
            client.set_model_version_tag(name, version.version, tag, value)
    if version.description != shorten(card):
        client.update_model_version(name, version.version, shorten(card))
    return client.get_model_version(name, version.version)


def _make_registered(client: MlflowClient, name: str, category: str) -> None:
    """Make a registered model where there is none; who may not is told so."""
    from mlflow.exceptions import MlflowException

    try:
        about = f"Defect detectors of the category {category}."
        client.create_registered_model(name, tags={CATEGORY_TAG: category}, description=about)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _category(model: RegisteredModel) -> str | None:
    """Return the category that a registered model is for, None where it is not one of msad's."""
    named = model.name.removeprefix(REGISTERED) if model.name.startswith(REGISTERED) else None
    return model.tags.get(CATEGORY_TAG, named)


def version_of(client: MlflowClient, run: Run, category: str) -> ModelVersion | None:
    """Return the version of a run's logged model among those of its category; None where it is not registered."""
    model, name = logged_model(client, run), registered_name(category)
    found = client.search_model_versions(search_filter(name=name, run_id=run.info.run_id))
    return next((one for one in found if model and one.source == model.artifact_location), None)


def _bundle_file(client: MlflowClient, run: Run, name: str) -> str:
    """Return a small file of a run's bundle, empty where it has none."""
    path, there = f"bundle/{name}", artifacts(client, run)
    if not any(item.path == path for item in there.list_artifacts(run.info.run_id, "bundle")):
        return ""
    with tempfile.TemporaryDirectory() as folder:
        return Path(there.download_artifacts(run.info.run_id, path, folder)).read_text()
