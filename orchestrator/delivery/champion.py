"""The registered models: one per category, whose versions are winners of studies, and the alias `champion` among them.

The alias moves by itself only to a version with a higher validation score on the same good images, and by hand with
`promote`. The versions' tags `validation_score` and `msad.identity` say which compare.
"""

from __future__ import annotations

import getpass
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.addresses import hide_secrets, public
from orchestrator.delivery.bundle_files import CARD_FILE
from orchestrator.delivery.model_card import shorten
from orchestrator.errors import ConfigError, TrackingError, first_line
from orchestrator.names import REGISTERED, registered_name, search_filter
from orchestrator.tracking_store import all_pages, connect, is_absent

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

ALIAS = "champion"
CATEGORY_TAG = "msad.category"
DIGITS = 6  # of a validation score in a version's tag, and so in every comparison


@dataclass(frozen=True)
class Promotion:
    """What `promote` did: the version that `CATEGORY@champion` is now, and the run whose model it was, if any."""

    category: str
    version: str
    before: str | None


def enter(client: MlflowClient, run: Run, category: str, card: str, score: float, tags: Mapping[str, str]) -> None:
    """Register a study's winner; it becomes `CATEGORY@champion` if its validation score is higher.

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
        Of the run; those of msad become tags of the version.
    """
    score = round(score, DIGITS)
    version = _version(client, run, category, card, score, tags)
    champion = _champion(client, category)
    # Scores compare only on the same good images; a category whose images changed starts anew.
    if champion is None or not _same_images(tags, champion) or score > _score(champion):
        client.set_registered_model_alias(version.name, ALIAS, version.version)


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
        Also where the champion has a higher validation score on the same images.

    Raises
    ------
    TrackingError
        There is no such run, or it has no model.
    ConfigError
        The champion is better, or is this run's already.
    """
    client = connect(tracking_uri)
    run = find_run(client, run_id)
    if logged_model(client, run) is None:
        raise without_model(run)
    category, score = run.data.tags["msad.category"], round(run.data.metrics["validation_score"], DIGITS)
    champion = _champion(client, category)
    if champion is not None and champion.run_id == run.info.run_id:
        raise ConfigError(f"{category}@{ALIAS} is the model of run {run.info.run_id} already: there is nothing to do")
    if champion is not None and _same_images(run.data.tags, champion) and score < _score(champion) and not force:
        raise ConfigError(
            f"run {run.info.run_id} has the validation score {score:.4f}, {category}@{ALIAS} (run "
            f"{champion.run_id}) has {_score(champion):.4f} on the same images: if you know better, say "
            "--force, and why with --reason"
        )
    version = _version(client, run, category, _card(client, run), score, run.data.tags)
    notes = {"by": getpass.getuser(), "at": datetime.now(UTC).isoformat(timespec="seconds"), "because": reason}
    for name, note in notes.items():
        client.set_model_version_tag(version.name, version.version, f"msad.promoted_{name}", note)
    client.set_registered_model_alias(version.name, ALIAS, version.version)
    return Promotion(category, version.version, champion.run_id if champion else None)


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
    found = all_pages(
        client.search_logged_models,
        experiment_ids=[run.info.experiment_id],
        filter_string=search_filter(source_run_id=run.info.run_id),
    )
    whole = [model for model in found if str(model.status).endswith("READY")]
    return max(whole, key=lambda model: model.creation_timestamp, default=None)


def without_model(run: Run) -> TrackingError:
    """Return the error that a run has no model, with its state."""
    tags = run.data.tags
    status, reason = tags.get("msad.status", run.info.status), tags.get("msad.reason", "")
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
    tags = {"validation_score": f"{score:.{DIGITS}f}", **{k: v for k, v in tags.items() if k.startswith("msad.")}}
    _make_registered(client, name, category)
    versions = client.search_model_versions(search_filter(name=name, run_id=run.info.run_id))
    version = next((one for one in versions if one.source == model.artifact_location), None)
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


def _champion(client: MlflowClient, category: str) -> ModelVersion | None:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(registered_name(category), ALIAS)
    except MlflowException as error:
        if not is_absent(error):
            raise
        return None


def _same_images(tags: Mapping[str, str], champion: ModelVersion) -> bool:
    identity = tags.get("msad.identity")
    return identity is not None and identity == champion.tags.get("msad.identity")


def _score(version: ModelVersion) -> float:
    return float(version.tags.get("validation_score", "-inf"))


def _card(client: MlflowClient, run: Run) -> str:
    path = f"bundle/{CARD_FILE}"
    if not any(item.path == path for item in client.list_artifacts(run.info.run_id, "bundle")):
        return ""
    with tempfile.TemporaryDirectory() as folder:
        return Path(client.download_artifacts(run.info.run_id, path, folder)).read_text()
