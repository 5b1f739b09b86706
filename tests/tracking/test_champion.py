"""The registered models and the alias among them, on a real SQLite store."""

from __future__ import annotations

import dataclasses
import getpass
import threading

import pytest
from click.testing import CliRunner
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from msad.errors import ConfigError, TrackingError
from msad.terminal.cli import msad
from msad.tracking import champion_alias
from msad.tracking.champion import _version, promote
from msad.tracking.champion_alias import CLAIM_TAG, score_of, take_place
from msad.tracking.model_store import deliver_files, pull
from msad.tracking.store import connect


def champion(client, category):
    return client.get_model_version_by_alias(f"msad-{category}", "champion")


def holder(client, category):
    return champion(client, category).run_id


def registered(client, run_id, category):
    """Register a run's model, and leave the alias alone."""
    run, tags = client.get_run(run_id), {"msad.identity": "i1", "msad.objective": "validation_score"}
    return _version(client, run, category, "", run.data.metrics["validation_score"], tags)


class SetsAlias:
    """A client at whose setting of an alias something happens, before or after."""

    def __init__(self, client, before=lambda: None, after=lambda: None):
        self._client, self._before, self._after = client, before, after

    def __getattr__(self, name):
        return getattr(self._client, name)

    def set_registered_model_alias(self, *words):
        before, self._before = self._before, lambda: None
        before()
        self._client.set_registered_model_alias(*words)
        self._after()


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


def test_champion_chosen_by_hand_gives_way_to_younger_models_alone(client, log, uri):
    log("clip", 0.6)
    best, record = log("clip", 0.8)
    chosen, _ = log("clip", 0.7)
    promote(chosen, uri, force=True)
    deliver_files(client, best, record)  # as a resume does
    assert holder(client, "clip") == chosen
    younger, _ = log("clip", 0.75)
    assert holder(client, "clip") == younger


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
    log("cap", 0.9, "f1")
    other, _ = log("cap", 0.5, "f2")
    promote(other, uri)
    assert holder(client, "cap") == other


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


def test_score_on_other_images_or_by_another_objective_moves_nothing(client, log):
    first, _ = log("wood", 0.5, "i1")
    log("wood", 0.99, "i2")
    log("wood", 0.99, "i1", objective="validation_pixel_ap")
    assert holder(client, "wood") == first


def test_champion_that_does_not_say_what_it_saw_compares_with_none(client, log):
    first, _ = log("felt", 0.5, identity="")
    log("felt", 0.9, identity="")
    assert holder(client, "felt") == first


def test_two_sweeps_that_end_at_once_leave_the_better_of_both(client, uri, log):
    for category, scores in (("hook", (0.6, 0.7)), ("hinge", (0.7, 0.6))):
        log(category, 0.5)
        slow, quick = (registered(client, log(category, score, register=False)[0], category) for score in scores)
        another, done = connect(uri), threading.Event()
        thread = threading.Thread(target=take_place, args=(SetsAlias(another, after=done.set), quick))

        def overtaken(thread=thread, done=done):
            thread.start()
            done.wait()

        take_place(SetsAlias(client, before=overtaken), slow)  # it has looked, and before it sets the other one sets
        thread.join()
        assert champion(client, category).version == max((slow, quick), key=score_of).version, category
        assert not [one for one in client.search_model_versions(f"name = 'msad-{category}'") if CLAIM_TAG in one.tags]


def test_claim_of_a_sweep_that_died_holds_up_no_other(client, log, monkeypatch):
    monkeypatch.setattr(champion_alias, "CLAIM_SECONDS", 0.0)
    log("latch", 0.5)
    dead = registered(client, log("latch", 0.4)[0], "latch")
    client.set_model_version_tag(dead.name, dead.version, CLAIM_TAG, "true")
    better, _ = log("latch", 0.6)
    assert holder(client, "latch") == better and CLAIM_TAG not in client.get_model_version(dead.name, dead.version).tags


@pytest.mark.parametrize("call", ["create_registered_model", "get_model_version_by_alias"])
def test_what_a_user_may_not_do_is_no_absence(client, log, monkeypatch, call):
    run_id, _ = log(f"bolt-{call}", 0.5)
    other, better = log(f"bolt-{call}", 0.6, register=False)

    def refuse(*_, **__):
        raise MlflowException("Permission denied", error_code=PERMISSION_DENIED)

    with monkeypatch.context() as denied:
        denied.setattr(client, call, refuse)
        with pytest.raises(MlflowException, match="Permission denied"):
            deliver_files(client, other, dataclasses.replace(better, register_as=f"bolt-{call}"))
    assert holder(client, f"bolt-{call}") == run_id


def test_run_deleted_in_the_ui_is_neither_promoted_nor_pulled(client, log, uri, tmp_path):
    for register in (True, False):  # of a study and of a trial
        run_id, _ = log("clasp", 0.5, register=register)
        client.delete_run(run_id)
        for refused in (
            lambda run_id=run_id: promote(run_id, uri),
            lambda run_id=run_id: pull(run_id, tmp_path / "m", uri),
        ):
            with pytest.raises(TrackingError, match=rf"was deleted in MLflow.*mlflow runs restore --run-id {run_id}"):
                refused()
    pull("clasp@champion", tmp_path / "registered", uri)  # a version outlives its run
