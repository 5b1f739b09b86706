"""The registered models and the alias among them, on a real SQLite store."""

from __future__ import annotations

import getpass

import pytest
from click.testing import CliRunner

from orchestrator.cli import msad
from orchestrator.delivery.champion import promote
from orchestrator.delivery.model_store import deliver_files
from orchestrator.errors import ConfigError, TrackingError


def champion(client, category):
    return client.get_model_version_by_alias(f"msad-{category}", "champion")


def holder(client, category):
    return champion(client, category).run_id


def test_alias_champion_moves_only_to_a_better_validation_score(client, log):
    middle, _ = log("tile", 0.70000041)
    assert holder(client, "tile") == middle
    log("tile", 0.6)
    log("tile", 0.70000041)
    assert holder(client, "tile") == middle
    better, record = log("tile", 0.8)
    assert holder(client, "tile") == better
    deliver_files(client, better, record)
    assert holder(client, "tile") == better


def test_alias_champion_starts_anew_on_other_training_images(client, log):
    log("wood", 0.9, "f1")
    other, _ = log("wood", 0.4, "f2")
    assert holder(client, "wood") == other


def test_registered_version_is_described_by_its_model_card(client, log):
    run_id, record = log("plate", 0.7)
    card = (record.directory.bundle / "MODEL_CARD.md").read_text()
    description = champion(client, "plate").description
    assert description.startswith(card[:1000]) and len(description) <= 5000
    assert run_id in description and "winner of a search over 3 configurations" in description


def test_promoted_run_is_champion_with_who_when_and_why(client, log, uri):
    first, _ = log("cable", 0.7)
    second, _ = log("cable", 0.7)
    assert holder(client, "cable") == first
    assert promote(second, uri, reason="sees the bent wires").before == first
    assert holder(client, "cable") == second
    tags = champion(client, "cable").tags
    assert tags["msad.promoted_by"] == getpass.getuser() and tags["msad.promoted_at"].endswith("+00:00")
    assert tags["msad.promoted_because"] == "sees the bent wires"
    with pytest.raises(ConfigError, match="already: there is nothing to do"):
        promote(second, uri)


def test_promotion_of_a_lower_score_on_the_same_images_needs_force(client, log, uri):
    best, _ = log("chain", 0.8)
    worse, _ = log("chain", 0.6, register=False)
    with pytest.raises(ConfigError, match=rf"score 0\.6000.*run {best}.* 0\.8000 on the same images.*--force"):
        promote(worse, uri)
    assert holder(client, "chain") == best and len(client.search_model_versions("name = 'msad-chain'")) == 1
    words = ["promote", worse, "--force", "--reason", "quicker", "--tracking-uri", uri]
    done = CliRunner().invoke(msad, words, standalone_mode=False)
    assert done.exit_code == 0 and f"before it was run {best}" in done.stdout
    assert holder(client, "chain") == worse


def test_promotion_of_a_lower_score_on_other_images_needs_none(client, log, uri):
    old, _ = log("cap", 0.5, "f1")
    log("cap", 0.9, "f2")
    promote(old, uri)
    assert holder(client, "cap") == old


def test_promotion_registers_a_trial_that_was_not(client, log, uri):
    run_id, _ = log("lid", 0.7, register=False)
    assert promote(run_id, uri).before is None
    version = champion(client, "lid")
    assert version.run_id == run_id and version.tags["validation_score"] == "0.700000"
    assert version.description.startswith("# Defect detector of")


def test_promotion_of_a_run_without_a_model_is_refused_with_its_state(client, experiment, uri):
    tags = {"msad.status": "pruned", "msad.category": "brick"}
    run_id = client.create_run(experiment, tags=tags, run_name="brick/baseline 0003").info.run_id
    with pytest.raises(TrackingError, match=r"no model: it is pruned.*msad compare"):
        promote(run_id, uri)
