"""Which version of a registered model is `CATEGORY@champion`: the rule by which the alias moves.

1. The first version of a category is its champion.
2. A version that saw the same as the champion (`msad.identity`: the same images in the same order and division, the
   same sizes, seed and versions of all that is drawn and scored) and was sought by the same objective takes its place
   if its validation score is higher.
3. Any other that is the best of its sweep is scored once more beside it when the sweep ends, on images that neither was
   trained on (`bundle/rescoring.py`), and takes its place if it is better there.
4. Where that cannot be, the alias stays, the new version is offered, and it is said why: `msad promote` moves it.
5. A champion that was chosen by hand gives way by itself only to versions that are younger than that choice.

MLflow sets an alias without asking what it was before. So whoever is about to set it says so first (`CLAIM_TAG`), looks
whether the champion is still the one that was compared with, sets it, and then waits until all others who have said so
have come to rest, and looks again. Of two sweeps that end at the same time at least one sees the other, and compares
anew. What remains: one that stands still between looking and setting for longer than `CLAIM_SECONDS` may afterwards set
an alias over a champion that it has not been compared with.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from msad.names import search_filter
from msad.tracking.store import all_pages, is_absent

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

ALIAS = "champion"
SCORE_TAG, OBJECTIVE_TAG, IDENTITY_TAG = "validation_score", "msad.objective", "msad.identity"
DIGITS = 6  # of a validation score in a version's tag, and so in every comparison

PROMOTED_AT_TAG = "msad.promoted_at"  # ISO 8601, by `champion.promote`
CLAIM_TAG = "msad.about_to_be_champion"
CLAIM_SECONDS = 30.0
POLL_SECONDS = 0.2


def holder(client: MlflowClient, name: str) -> ModelVersion | None:
    """Return the champion of a registered model; None where it has none, or is none."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, ALIAS)
    except MlflowException as error:
        if not is_absent(error):
            raise
        return None


def comparable(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Return whether validation scores say which of two versions is better, by their tags.

    They do where both saw the same and sought the same. One of before this was noted compares with none.
    """
    return all((value := one.get(tag)) and value == other.get(tag) for tag in (IDENTITY_TAG, OBJECTIVE_TAG))


def score_of(version: ModelVersion) -> float:
    """Return a version's validation score."""
    return float(version.tags.get(SCORE_TAG, "-inf"))


def sought_by(description: Mapping[str, Any]) -> dict[str, str]:
    """Return the tag that says what a model was chosen by, from its `bundle.json`; empty where that does not say."""
    named = description.get("job", {}).get("objective")
    return {OBJECTIVE_TAG: named} if named else {}


def take_place(client: MlflowClient, version: ModelVersion) -> ModelVersion | None:
    """Make a version the champion where the first two points of the rule say so.

    Returns
    -------
    ModelVersion or None
        The champion that it does not compare with, and which stays for now; None where all is decided.
    """
    if CLAIM_TAG in version.tags:  # of an attempt that was killed, which others would wait for
        client.delete_model_version_tag(version.name, version.version, CLAIM_TAG)
    while True:
        champion = holder(client, version.name)
        if champion is not None:
            if _number(champion) == _number(version) or _chosen_over(version, champion):
                return None
            if not comparable(version.tags, champion.tags):
                return champion
            if score_of(version) <= score_of(champion):
                return None
        if move(client, version, champion):
            return None


def move(client: MlflowClient, version: ModelVersion, expected: ModelVersion | None) -> bool:
    """Make a version the champion if that is still `expected` (None: there is none); return whether it is now.

    Where it returns False another has become champion meanwhile, with which the version is to be compared.
    """
    name, number = version.name, _number(version)
    client.set_model_version_tag(name, number, CLAIM_TAG, "true")
    try:
        if _number(holder(client, name)) != _number(expected):
            return False
        client.set_registered_model_alias(name, ALIAS, number)
    finally:
        client.delete_model_version_tag(name, number, CLAIM_TAG)
    _await_others(client, version)
    return _number(holder(client, name)) == number


def _await_others(client: MlflowClient, version: ModelVersion) -> None:
    """Wait until no other version is about to become champion; the claim of one that has died is taken back."""
    deadline = time.monotonic() + CLAIM_SECONDS
    while True:
        found = all_pages(client.search_model_versions, filter_string=search_filter(name=version.name))
        others = [one for one in found if CLAIM_TAG in one.tags and _number(one) != _number(version)]
        if not others:
            return
        if time.monotonic() > deadline:
            for one in others:
                client.delete_model_version_tag(one.name, one.version, CLAIM_TAG)
            return
        time.sleep(POLL_SECONDS)


def _chosen_over(version: ModelVersion, champion: ModelVersion) -> bool:
    """Return whether the champion was chosen by hand when there was this version already."""
    chosen = champion.tags.get(PROMOTED_AT_TAG)
    return bool(chosen) and 1000 * datetime.fromisoformat(chosen).timestamp() >= version.creation_timestamp


def _number(version: ModelVersion | None) -> str | None:
    return None if version is None else str(version.version)  # MLflow's stores give it as text or as a number
