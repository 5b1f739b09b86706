"""The best of a sweep meets the champion: what moves the alias, what is offered, and what is noted of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from msad.errors import ConfigError
from msad.tracking.challenge import settle
from msad.tracking.champion import promote


@pytest.fixture
def meet(client, uri):
    """Return a function that ends a sweep whose best is a logged run; gives the words and the calls of `compare`."""

    def meet(category, run_id, record, result):
        calls = []

        def compare(champion):
            calls.append(sorted(path.name for path in champion.iterdir()))
            return result

        return settle(client, uri, {category: (run_id, record.directory, compare)}, print).get(category), calls

    return meet


def version(client, category, run_id):
    (found,) = client.search_model_versions(f"name = 'msad-{category}' and run_id = '{run_id}'")
    return found


def champion(client, category):
    return client.get_model_version_by_alias(f"msad-{category}", "champion").run_id


def test_winner_that_is_better_beside_the_champion_takes_its_place(client, log, meet):
    log("rope", 0.9, "i1")
    run_id, record = log("rope", 0.3, "i2")  # whatever the scores say, which do not compare
    result = {"challenger": 0.8, "champion": 0.7, "on": "12 good images"}
    words, calls = meet("rope", run_id, record, result)
    assert champion(client, "rope") == run_id
    said = "version 2 is better than version 1, the champion: 0.8000 and 0.7000 on 12 good images"
    assert words == f"{said}; it is rope@champion now"
    tags = version(client, "rope", run_id).tags
    assert (tags["msad.compared"], tags["msad.compared_with"], tags["msad.compared_score"]) == (said, "1", "0.800000")
    assert calls == [["MODEL_CARD.md", "bundle.json", "model.safetensors", "scorer.safetensors"]]
    assert meet("rope", run_id, record, result) == (None, [])  # a resume


def test_winner_that_is_no_better_leaves_it_and_is_not_scored_again(client, log, meet, uri):
    first, _ = log("cord", 0.3, "i1")
    run_id, record = log("cord", 0.9, "i2")
    words, _ = meet("cord", run_id, record, {"challenger": 0.6, "champion": 0.7, "on": "12 good images"})
    assert champion(client, "cord") == first and "no better than version 1" in words
    again, calls = meet("cord", run_id, record, None)
    assert again == words and not calls
    with pytest.raises(ConfigError, match=r"0\.6000 and cord@champion.* 0\.7000, scored on the same.*--force"):
        promote(run_id, uri)
    promote(run_id, uri, force=True)
    assert champion(client, "cord") == run_id


def test_winner_that_cannot_be_compared_is_offered_with_the_reason(client, log, meet, uri):
    first, _ = log("yarn", 0.3, "i1")
    run_id, record = log("yarn", 0.9, "i2")
    words, _ = meet("yarn", run_id, record, {"reason": "too few images are left"})
    assert champion(client, "yarn") == first
    assert words.endswith(f"version 1: too few images are left. To take it: msad promote {run_id}")
    assert version(client, "yarn", run_id).tags["msad.compared"] == words
    assert promote(run_id, uri).before == first  # on other images no score forbids it


def test_champion_whose_files_are_gone_is_said_to_be_so(client, log, meet):
    first, _ = log("wire", 0.3, "i1")
    shutil.rmtree(Path(client.get_run(first).info.artifact_uri.removeprefix("file://")))
    run_id, record = log("wire", 0.9, "i2")
    words, calls = meet("wire", run_id, record, {})
    assert "its files cannot be had" in words and f"msad promote {run_id}" in words and not calls


def test_champion_that_came_meanwhile_is_compared_with_too(client, log, meet, monkeypatch):
    log("lace", 0.3, "i1")
    run_id, record = log("lace", 0.5, "i2")
    other = []

    class Overtaken(dict):
        """A result, at whose reading another sweep makes its own champion."""

        def __getitem__(self, key):
            if key == "on" and not other:
                other.append(log("lace", 0.4, "i3")[0])
                number = version(client, "lace", other[0]).version
                client.set_registered_model_alias("msad-lace", "champion", number)
            return super().__getitem__(key)

    words, calls = meet("lace", run_id, record, Overtaken(challenger=0.8, champion=0.7, on="12 good images"))
    assert champion(client, "lace") == run_id and len(calls) == 2 and "better than version 3" in words


def test_outage_at_the_end_is_told_and_loses_nothing(client, log, meet, monkeypatch):
    run_id, record = log("twine", 0.5)

    def away(*_, **__):
        raise ConnectionError("the server is away")

    monkeypatch.setattr(client, "get_run", away)
    assert meet("twine", run_id, record, {})[0] == "the champion could not be decided on: the server is away"
