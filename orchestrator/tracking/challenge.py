"""At a sweep's end: the best of each category meets the champion, where their validation scores do not compare.

Both are scored elsewhere (`cluster.comparison`), because that needs the images, torch and perhaps a GPU, which the
process that runs the sweep need not have. Here the champion's bundle is brought and the alias moved (`champion_alias`).
What came of it is in the final's folder, so that a resume asks nothing twice, and in tags of
the model's version.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msad.addresses import hide_secrets
from msad.bundle import bundle_files
from msad.errors import BundleError, TrackingError, first_line
from msad.tracking.champion import COMPARED_TAG, COMPARED_WITH_TAG, version_of
from msad.tracking.champion_alias import ALIAS, move, take_place
from msad.tracking.model_store import pull
from msad.workspace import JobDirectory

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

RESULT = "challenge"  # the file in a final's folder
MOST_ROUNDS = 3  # as often as other sweeps put another champion in the way

Compare = Callable[[Path], Mapping[str, Any]]


def settle(
    client: MlflowClient,
    tracking_uri: str,
    winners: Mapping[str, tuple[str, JobDirectory, Compare]],
    say: Callable[[str], None],
) -> dict[str, str]:
    """Let the best of each category take the champion's place where it is better.

    Parameters
    ----------
    client, tracking_uri
        Where the models are.
    winners
        By category: the run ID of its best study, the folder of that study's final training, and what scores its bundle
        beside the one in another folder: it returns `challenger` and `champion`, both scores, and `on` what, in words;
        or a `reason` why there are none.
    say
        Called with a line for the user for each category of the result.

    Returns
    -------
    dict
        By category in words what came of it, where it did not go without saying.
    """
    told = {}
    for category, (run_id, final, compare) in winners.items():
        try:
            if words := _settle(client, tracking_uri, category, run_id, final, compare):
                told[category] = words
        except Exception as error:  # hours of training are delivered; the next resume asks again
            told[category] = f"the champion could not be decided on: {hide_secrets(first_line(error))}"
        if category in told:
            say(f"{category}: {told[category]}")
    return told


def _settle(
    client: MlflowClient, tracking_uri: str, category: str, run_id: str, final: JobDirectory, compare: Compare
) -> str | None:
    version = version_of(client, client.get_run(run_id), category)
    if version is None:
        return None
    for _ in range(MOST_ROUNDS):
        champion = take_place(client, version)
        if champion is None:
            return None
        result = _result(tracking_uri, champion, final, compare)
        if "reason" in result:
            words = (
                f"version {version.version} is not compared with {category}@{ALIAS}, which stays version "
                f"{champion.version}: {result['reason']}. To take it: msad promote {run_id}"
            )
            _note(client, version, champion, words)
            return words
        ours, theirs = result["challenger"], result["champion"]
        better = ours > theirs
        words = (
            f"version {version.version} is {'better than' if better else 'no better than'} version {champion.version}, "
            f"the champion: {ours:.4f} and {theirs:.4f} on {result['on']}"
        )
        scores = {"score": f"{ours:.6f}", "champion_score": f"{theirs:.6f}"}
        _note(client, version, champion, words, **scores)  # first: once the alias is set all counts as decided
        if not better:
            return f"{words}; {category}@{ALIAS} stays"
        if move(client, version, champion):
            return f"{words}; it is {category}@{ALIAS} now"
    return f"other sweeps keep making champions of {category}: `msad promote {run_id}` takes version {version.version}"


def _result(tracking_uri: str, champion: ModelVersion, final: JobDirectory, compare: Compare) -> Mapping[str, Any]:
    """Return the result of scoring both, an earlier one of the same two models where there is one."""
    checksums = bundle_files.description_of(final.bundle)["sha256"]
    pair = {"champion_run": champion.run_id, "champion_version": str(champion.version)}
    pair |= {name: checksums[name] for name in bundle_files.TENSORS}
    kept = final.read(RESULT)
    if kept and kept["pair"] == pair and "reason" not in kept["result"]:
        return kept["result"]
    with tempfile.TemporaryDirectory(prefix="msad-") as folder:
        place = Path(folder) / "champion"
        try:
            pull(champion.run_id, place, tracking_uri)
        except (TrackingError, BundleError) as error:
            return {"reason": f"its files cannot be had: {error}"}
        result = compare(place)
    final.write(RESULT, {"pair": pair, "result": dict(result)})
    return result


def _note(client: MlflowClient, version: ModelVersion, champion: ModelVersion, words: str, **scores: str) -> None:
    tags = {COMPARED_WITH_TAG: str(champion.version), COMPARED_TAG: words}
    tags |= {f"{COMPARED_TAG}_{name}": value for name, value in scores.items()}
    for name, value in tags.items():
        client.set_model_version_tag(version.name, version.version, name, value[:5000])
