"""The commands. Each turns its words into one call and the result into text and an exit code; no logic lives here.

Exit codes: 0 done; 1 it ran, and something in it failed; 2 the input is wrong, nothing was done; 130 interrupted.
"""

from __future__ import annotations

import atexit
import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import click

from msad import surroundings
from msad.terminal import completion
from msad.terminal.cli_drift import drift
from msad.terminal.cli_export import bench, export
from msad.terminal.cli_inspect import compare, config, data, ui
from msad.terminal.cli_registry import promote, pull
from msad.terminal.options import (
    CONTEXT,
    demo_folder,
    json_option,
    layout_option,
    refuse_settled,
    search_options,
    settings_of,
    sweep_options,
    tracking_option,
    write_json,
)
from msad.terminal.outputs import output_folder

# Imports of Ray, MLflow and torch cost seconds each, so every command makes its own and `--help` none.


def main() -> None:
    """Run the command line, and leave threads behind that wait for a server which will not answer."""
    try:
        _main()
    except SystemExit as ended:
        tracking = sys.modules.get("msad.tracking.tracker")
        if tracking is None or not tracking.hung():
            raise
        # Python would wait for them, MLflow's uploads among them, before it ends; Ray's own processes go with it.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended.code if isinstance(ended.code, int) else 1)


def _main() -> None:
    """Run a command; errors that a user can mend are one message and an exit code, never a traceback."""
    if sys.platform == "win32":
        try:
            from msad import data_io  # noqa: F401 # which says why
        except ImportError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(2)
    from msad.addresses import hide_secrets
    from msad.errors import USER_ERRORS, Interrupted
    from msad.training.malloc import keep_freed_memory

    surroundings.complete()
    _without_passwords(sys.orig_argv)
    for stream in (sys.stdout, sys.stderr):  # a name or a star that a console cannot show ends no command
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    keep_freed_memory()
    # Last, so that it hides nothing: a user's own architecture may lie in the folder he is in, as with `python -m`.
    sys.path.append(str(Path.cwd()))
    try:
        sys.exit(msad(prog_name="msad", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (Interrupted, click.Abort, KeyboardInterrupt) as error:
        click.echo(str(error) or "interrupted", err=True)
        sys.exit(130)
    except USER_ERRORS as error:
        click.echo(f"error: {hide_secrets(str(error))}", err=True)
        sys.exit(2)
    except BrokenPipeError:  # `msad compare | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
        sys.exit(1)
    except OSError as error:  # a folder that is missing or may not be written, a full disk
        click.echo(f"error: {error.filename or ''}: {error.strerror or error}", err=True)
        sys.exit(1)


def _without_passwords(arguments: list[str]) -> None:
    """Begin anew where an address on the command line has a password, which goes into the environment instead.

    Every user of a machine sees the arguments of its processes, and Ray's dashboard shows those of a sweep.
    """
    from msad.addresses import absolute, public

    bare = list(arguments)
    for place, argument in enumerate(arguments):
        option, equals, address = argument.rpartition("--tracking-uri=")
        is_address = (equals and not option) or (place and arguments[place - 1] == "--tracking-uri")
        if is_address and (shown := public(address)) != absolute(address):
            bare[place] = option + equals + shown
            os.environ["MLFLOW_TRACKING_URI"] = address
    if bare != arguments:
        os.execv(sys.executable, [sys.executable, *bare[1:]])


@click.group(context_settings=CONTEXT)
@click.version_option(package_name="msad")
def msad() -> None:
    """Find the best defect detector for each product: search on Ray, browse in MLflow, pull by run ID.

    \b
    Example: msad search --categories brick,gear --trials 8 --name first
    """


@msad.command(context_settings=CONTEXT)
@click.option(
    "--resume",
    metavar="NAME",
    shell_complete=completion.kept_sweeps,
    help="Finish an interrupted sweep, or raise its --trials; --storage, --dataset, --tracking-uri and --address say "
    "where those are now.",
)
@click.option(
    "--restart-changed",
    is_flag=True,
    help="Where images have changed since a sweep began, start the studies on them anew; --resume refuses them else.",
)
@search_options
@json_option("how it ended and the leaderboard")
def search(
    config: Path | None, resume: str | None, restart_changed: bool, json_file: str | None, **options: Any
) -> int:
    """Search the best configuration of each category and architecture.

    CONFIG is a YAML file with the same settings; options given here take precedence.

    \b
    Examples:
      msad search --dataset mvtec --categories bottle,cable --trials 20 --name first
      msad search --resume first
      msad search --resume first --trials 40
    """
    from msad.sweep import launch

    if resume:
        refuse_settled(config, options)
        kept = {name: options[name] for name in ("address", "tracking_uri", "dataset", "trials")}
        storage = options["storage"] or Path("sweeps")
        return _report(launch.resume(resume, storage, **kept, restart_changed=restart_changed), json_file)
    if restart_changed:
        raise click.UsageError("--restart-changed is for a sweep that was begun: give --resume NAME too")
    return _report(launch.start(_config(config, options)), json_file)


@msad.command(context_settings=CONTEXT)
@sweep_options
@json_option("how it ended and the leaderboard")
def train(json_file: str | None, **options: Any) -> int:
    """Train one fixed configuration per category and architecture, without a search.

    \b
    Example: msad train --dataset mvtec --categories bottle --architectures multiscale --set learning_rate=0.002
    """
    from msad.sweep import launch

    return _report(launch.start(_config(None, {**options, "trials": 0})), json_file)


def _config(file: Path | None, options: dict[str, Any]) -> Any:
    from msad.search.config import make_config

    values = settings_of(file, options)
    if "dataset" not in values:
        values["dataset"] = _demo()
    return make_config(values)


def _demo() -> Path:
    from msad.data_io.demo import make_demo

    folder = demo_folder()
    click.echo(f"no --dataset given: using the demo dataset in {folder}", err=True)
    return make_demo(folder)


def _report(outcome: Any, json_file: str | None) -> int:
    from msad.terminal.leaderboard_text import format_leaderboard
    from msad.tracking.compare import leaderboard
    from msad.tracking.ui.server import browse

    for study, reason in outcome.failed_studies.items():
        click.echo(f"{study} has no result: {reason}", err=True)
    for study, reason in outcome.unmeasured.items():
        click.echo(f"{study} is delivered, but not measured: {reason}\nOnce mended: {outcome.resume}", err=True)
    if outcome.undelivered:
        click.echo(
            f"{outcome.undelivered} run(s) could not be delivered to {outcome.tracking_uri}; their results are safe. "
            f"Deliver them with: {outcome.resume}",
            err=True,
        )
    if outcome.unreported:
        click.echo(
            f"the sweep's report could not be made: {outcome.unreported}\nMake it with: {outcome.resume}", err=True
        )
    # A store that could not take everything may not answer either.
    table = None if outcome.undelivered else leaderboard(outcome.name, outcome.tracking_uri)
    rows = [] if table is None else table.to_dict("records")
    values = {**dataclasses.asdict(outcome), "ok": outcome.ok, "leaderboard": rows}
    if not write_json(json_file, values) and table is not None:
        click.echo(format_leaderboard(table))
        click.echo(f"Browse: {browse(outcome.name, outcome.tracking_uri)}    Again: msad compare {outcome.name}")
    return 0 if outcome.ok else 1


@msad.command(context_settings=CONTEXT)
@click.argument("model", shell_complete=completion.models)
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", default="predictions", show_default=True, type=click.Path(path_type=Path), callback=output_folder
)
@click.option("--threshold", type=float, help="Call images above this score anomalous. [default: the model's own]")
@click.option(
    "--pixel-threshold",
    type=float,
    help="Connected pixels of a map above this value are a region. [default: the model's own]",
)
@click.option(
    "--smallest-area",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    metavar="PIXELS",
    help="Leave out regions of fewer pixels of the image.",
)
@click.option("--heatmaps/--no-heatmaps", default=True, show_default=True, help="A picture of each image and its map.")
@click.option(
    "--maps",
    type=click.Choice(["none", "png", "npy"]),
    default="none",
    show_default=True,
    help="Each anomaly map at the image's own size: 16 bit grey, or exact numbers.",
)
@click.option("--overwrite", is_flag=True, help="Replace the results in --out instead of continuing them.")
@click.option("--batch-size", default=8, show_default=True, type=click.IntRange(1), help="Images at once.")
@click.option("--device", help="cpu, cuda, cuda:1, ... [default: the GPU if there is one]")
@tracking_option
@json_option("the counts and what was skipped")
def predict(
    model: str,
    images: tuple[Path, ...],
    out: Path,
    device: str | None,
    tracking_uri: str | None,
    json_file: str | None,
    **options: Any,
) -> int:
    """Score images (files or folders) with a pulled model's folder or a run ID: scores.csv, regions.csv and heatmaps.

    regions.csv lists what is connected in an image's map: box, area, peak and mean score, the largest first;
    regions.json is the same in COCO's form. The same command again continues where it was stopped; what cannot be read
    is listed in skipped.csv.

    \b
    Example: msad predict models/bottle new_photographs --out predictions
    """
    from msad.bundle.predict import format_outcome, predict_folder
    from msad.tracking.loading import load

    bundle = load(model, device, tracking_uri)
    result = predict_folder(bundle, list(images), out, **options)
    if not write_json(json_file, {"out": out, **dataclasses.asdict(result)}):
        click.echo(format_outcome(result, out))
    return 1 if result.skipped else 0


@msad.command(context_settings=CONTEXT)
@click.argument("model", shell_complete=completion.models)
@click.argument("root", type=click.Path(path_type=Path))
@click.option("--category", help="[default: the one the model was trained on]")
@click.option(
    "--masks-at",
    type=click.Choice(["model", "native"]),
    default="model",
    show_default=True,
    help="Measure pixels at the model's image size or at the masks' own.",
)
@layout_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    callback=output_folder,
    help="Folder for pictures, scores.csv, regions.csv and per_defect_type.csv.",
)
@tracking_option
@json_option("the figures")
def evaluate(
    model: str,
    root: Path,
    category: str | None,
    masks_at: str,
    layout: str | None,
    out: Path | None,
    tracking_uri: str | None,
    json_file: str | None,
) -> int:
    """Measure a model (folder, run ID, or an exported file) on the test split of a dataset.

    \b
    Example: msad evaluate models/bottle mvtec --out report
    """
    from msad.bundle.evaluation import evaluate as measure
    from msad.bundle.evaluation import save_tables
    from msad.bundle.exported_model import SUFFIXES, ExportedModel
    from msad.data_io.cache import default_cache_dir
    from msad.pictures.gallery import save_evaluation
    from msad.progress import reading_files
    from msad.terminal.evaluation_text import format_evaluation
    from msad.tracking.loading import load

    exported = model.endswith(SUFFIXES)
    bundle = ExportedModel(Path(model)) if exported else load(model, tracking_uri=tracking_uri)
    category, cache = category or bundle.job.category, default_cache_dir()
    with reading_files("Reading images"):
        result = measure(bundle, root, category, cache, masks_at=masks_at, layout=layout or "auto")
    if not write_json(json_file, result.summary()):
        click.echo(format_evaluation(result))
    if out:
        save_evaluation(result, out)
        save_tables(result, out)
    return 0


for command in (compare, pull, promote, export, bench, drift, config, data, ui):
    msad.add_command(command)
