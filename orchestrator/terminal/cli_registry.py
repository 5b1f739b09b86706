"""The commands on the models that sweeps have registered: fetch one, choose a category's champion."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from msad.terminal import completion
from msad.terminal.options import CONTEXT, json_option, tracking_option, write_json
from msad.terminal.outputs import output_folder


@click.command(context_settings=CONTEXT)
@click.argument("run_id", shell_complete=completion.registered_models)
@click.option(
    "--to",
    required=True,
    type=click.Path(path_type=Path),
    callback=output_folder,
    help="Folder to make; must not hold anything.",
)
@tracking_option
@json_option("where the model is and what it is")
def pull(run_id: str, to: Path, tracking_uri: str | None, json_file: str | None) -> int:
    """Fetch a trained model by the run ID of a trial or a study, or as CATEGORY@champion; verified by checksum.

    \b
    Example: msad pull bottle@champion --to models/bottle
    """
    from msad.bundle.bundle_files import summary
    from msad.tracking.model_store import pull as pull_bundle

    folder = pull_bundle(run_id, to, tracking_uri)
    if not write_json(json_file, {"folder": folder, **summary(folder)}):
        click.echo(f"pulled to {folder}")
    return 0


@click.command(context_settings=CONTEXT)
@click.argument("run_id")
@click.option("--reason", default="", help="Kept with your name and the time, as tags of the registered version.")
@click.option("--force", is_flag=True, help="Also where the champion has a higher validation score on the same images.")
@tracking_option
@json_option("the champion that is and the one that was")
def promote(run_id: str, reason: str, force: bool, tracking_uri: str | None, json_file: str | None) -> int:
    """Make the model of a run its category's champion by hand; `msad search` moves it to better ones by itself.

    \b
    Example: msad promote 6804951eb3324a02954720bfd0faa50a --reason "fewer false alarms on line 2"
    """
    from msad.tracking.champion import ALIAS
    from msad.tracking.champion import promote as move

    done = move(run_id, tracking_uri, reason=reason, force=force)
    before = f"; before it was run {done.before}" if done.before else ""
    if not write_json(json_file, {**dataclasses.asdict(done), "run_id": run_id}):
        click.echo(f"{done.category}@{ALIAS} is now version {done.version}, run {run_id}{before}")
    return 0
