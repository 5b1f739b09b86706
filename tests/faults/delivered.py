"""What a sweep does when all is trained and tested, and what MLflow has of it afterwards: a part of `killed.py`."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from msad import usage_reports
from msad.names import registered_name
from msad.tracking.champion_alias import IDENTITY_TAG
from msad.tracking.run_mirror import CONTENT_TAG
from msad.tracking.store import all_pages, connect, open_experiment
from msad.tracking.tracker import Tracker

NAME = "killed"
DIFFERS = re.compile(rb"utc_time_created: .*|model_uuid: .*|Begun [^<]*|\"MODEL_CARD.md\": .*")
"""What of a file differs from one delivery to another: times, and the checksum of a card, which has the run's ID."""


def prepare() -> None:
    """Import what a delivery needs, so that each process that is forked has it."""
    usage_reports.switch_off()  # or MLflow starts a thread
    import mlflow.pyfunc  # noqa: F401
    import ray  # noqa: F401


def address(folder: Path) -> str:
    """Return the address of the store in a sweep's folder."""
    return f"sqlite:///{folder / 'mlflow.db'}"


def make_store(folder: Path) -> None:
    """Make the empty store that a delivery finds: its tables take MLflow seconds."""
    connect(address(folder), create=True)


class InStep(Tracker):
    """A tracker that is never behind, so that every delivery makes its writes in the same order."""

    def put(self, record: Any) -> None:
        super().put(record)
        assert self.flush(0, 60) == 0, self._failing


def deliver(folder: Path, demo: Path, study: Any, name: str = NAME, *, meet: bool = True) -> dict[str, Any]:
    """Deliver a search that is finished, as the end of `msad search` does; return what is in MLflow then.

    Without `meet` the winner does not meet a champion that it does not compare with.
    """
    from rich.console import Console

    from msad.bundle import bundle_files
    from msad.cluster.trial_resources import TrialResources
    from msad.names import final_id
    from msad.search.config import make_config
    from msad.search.sweep_plan import Code, StudyPlan, SweepPlan, seen
    from msad.sweep.running_sweep import RunningSweep
    from msad.tracking.challenge import settle
    from msad.tracking.model_store import deliver_files
    from msad.training.identity import Identity
    from msad.workspace import Workspace, write_atomically

    def say(line: str) -> None:
        raise AssertionError(line)  # nothing went wrong that a person must hear of

    base, workspace, uri = study.base, Workspace(folder), address(folder)
    provenance = bundle_files.description_of(workspace.job(final_id(study.id)).bundle)["provenance"]
    plan = SweepPlan(
        studies=(StudyPlan(id=study.id, job=base, space=study.space, trials=study.trials),),
        identities={seen(base): Identity.from_dict(provenance["identity"])},
        layout="mvtec",
        code=(Code("1", "a"),),
    )
    settings = {"architectures": (base.architecture,), "trials": study.trials, "image_size": base.image_size}
    config = make_config({"name": name, "dataset": demo, "storage": folder, "tracking_uri": uri, **settings})
    client, console = connect(uri), Console(file=io.StringIO())
    with workspace.lock():
        tracker = InStep(client, open_experiment(client, name, uri, workspace.claim_id()), say, deliver_files)
        plan.write(workspace)
        write_atomically(workspace.config, config.to_yaml().encode())
        sweep = RunningSweep(config, workspace, plan, TrialResources("direct", 1, 0, 1), tracker, console)
        wrong = sweep.run(), sweep.publish(0), meet and settle(client, uri, sweep.entered(), say)
        assert wrong == ({}, None, {} if meet else False) and tracker.close() == 0, wrong
    return told(client, folder, workspace.sweep_id)


def make_challenge(folder: Path, demo: Path, study: Any, store: Path) -> None:
    """Make of a finished search a sweep that is delivered to another's store, whose champion it does not compare with.

    `store` is that sweep's folder, which stays as it is.
    """
    shutil.copyfile(store / "mlflow.db", folder / "mlflow.db")
    client, name = connect(address(folder)), registered_name(study.base.category)
    client.delete_model_version_tag(name, "1", IDENTITY_TAG)  # as of a version of msad that did not note it
    deliver(folder, demo, study, "later", meet=False)


def challenge(folder: Path, study: Any) -> dict[str, Any]:
    """Let the winner of such a sweep meet the champion and win; return what is in MLflow then."""
    from msad.names import final_id
    from msad.tracking.challenge import settle
    from msad.workspace import Workspace

    client, workspace, job_id = connect(address(folder)), Workspace(folder), final_id(study.id)
    experiment = client.get_experiment_by_name("later")
    (run,) = client.search_runs([experiment.experiment_id], filter_string=f"tags.`msad.trial_id` = '{study.id}'")
    result = {"challenger": 0.9, "champion": 0.8, "on": "the same images"}
    winners = {study.base.category: (run.info.run_id, workspace.job(job_id), lambda _champion: result)}
    with workspace.lock():
        settle(client, address(folder), winners, lambda _line: None)
    return told(client, folder, workspace.sweep_id)


def told(client: Any, folder: Path, sweep_id: str) -> dict[str, Any]:
    """Return all that a store has, without what differs from one delivery to another: IDs, times and the folder."""
    from mlflow.entities import ViewType

    experiments = all_pages(client.search_experiments, view_type=ViewType.ALL)
    ids = [experiment.experiment_id for experiment in experiments]
    runs = all_pages(client.search_runs, experiment_ids=ids, run_view_type=ViewType.ALL)
    models = all_pages(client.search_logged_models, experiment_ids=ids)
    names = {str(folder): "FOLDER", sweep_id: "SWEEP"}
    names |= {run.info.run_id: f"RUN {run.data.tags.get('msad.trial_id')}" for run in runs}
    names |= {model.model_id: f"MODEL OF {names.get(model.source_run_id)}" for model in models}
    names |= {digest: "DIGEST" for run in runs if (digest := run.data.tags.get(CONTENT_TAG))}
    bundles = folder.glob("mlartifacts/*/*/artifacts/bundle/bundle.json")
    names |= {hashlib.sha256(file.read_bytes()).hexdigest(): "DIGEST OF BUNDLE" for file in bundles}
    plain, stored = plainly(names), folder / "mlartifacts"
    files = [file for file in stored.rglob("*") if file.is_file()]
    values = {
        "experiments": [{"name": one.name, "tags": one.tags, "state": one.lifecycle_stage} for one in experiments],
        "runs": sorted((_run(client, run) for run in runs), key=lambda run: run["name"]),
        "models": sorted(map(_model, models), key=lambda model: names[model["id"]]),
        "registered": [_registered(client, one) for one in all_pages(client.search_registered_models)],
        "artifacts": {str(file.relative_to(folder)): digest_of(file, plain) for file in files},
        "files": sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if stored not in file.parents),
    }
    return replaced(values, plain)


def _run(client: Any, run: Any) -> dict[str, Any]:
    # What is logged again with the same value at the same step is seen nowhere.
    history = {
        key: list(dict.fromkeys((each.step, each.value) for each in client.get_metric_history(run.info.run_id, key)))
        for key in run.data.metrics
    }
    outputs = [model.model_id for model in run.outputs.model_outputs] if run.outputs else []
    state = {"name": run.info.run_name, "status": run.info.status, "tags": run.data.tags, "params": run.data.params}
    return state | {"metrics": run.data.metrics, "history": history, "outputs": outputs}


def _model(model: Any) -> dict[str, Any]:
    metrics = sorted((metric.key, metric.step, metric.value) for metric in model.metrics or ())
    state = {"id": model.model_id, "run": model.source_run_id, "status": str(model.status)}
    return state | {"params": model.params, "tags": model.tags, "metrics": metrics, "at": model.artifact_location}


def _registered(client: Any, model: Any) -> dict[str, Any]:
    versions = all_pages(client.search_model_versions, filter_string=f"name = '{model.name}'")
    told = [
        {"number": one.version, "run": one.run_id, "source": one.source, "tags": one.tags, "about": one.description}
        for one in versions
    ]
    aliases = {alias: str(number) for alias, number in model.aliases.items()}
    return {"name": model.name, "tags": model.tags, "aliases": aliases, "versions": told}


def plainly(names: Mapping[str, str]) -> Callable[[str], str]:
    """Return a function that puts names in the place of IDs."""
    pattern = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))
    return lambda text: pattern.sub(lambda found: names[found[0]], text)


def replaced(values: Any, plain: Callable[[str], str]) -> Any:
    """Return values with a function applied to every text in them."""
    if isinstance(values, Mapping):
        return {plain(str(key)): replaced(value, plain) for key, value in values.items()}
    if isinstance(values, str):
        return plain(values)
    if isinstance(values, Iterable):
        return [replaced(value, plain) for value in values]
    return values


def digest_of(file: Path, plain: Callable[[str], str]) -> str:
    """Return a digest of a file's content without IDs and times."""
    content = DIFFERS.sub(b"", file.read_bytes()).decode("latin-1")
    return hashlib.sha256(plain(content).encode()).hexdigest()
