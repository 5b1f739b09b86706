"""The commands. Each turns its words into one call and the result into text and an exit code; no logic lives here.

Exit codes: 0 done; 1 it ran, and something in it failed; 2 the input is wrong, nothing was done; 130 interrupted.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click
import yaml

# Imports of Ray, MLflow and torch cost seconds each, so every command makes its own and `--help` none.

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


def main() -> None:
    """Run the command line; errors that a user can mend are one message and an exit code, never a traceback."""
    from orchestrator.errors import USER_ERRORS, Interrupted

    # Last, so that it hides nothing: a user's own architecture may lie in the folder he is in, as with `python -m`.
    sys.path.append(str(Path.cwd()))
    try:
        sys.exit(msad(standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (Interrupted, click.Abort, KeyboardInterrupt) as error:
        click.echo(str(error) or "interrupted", err=True)
        sys.exit(130)
    except USER_ERRORS as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except OSError as error:  # a folder that is missing or may not be written, a full disk
        click.echo(f"error: {error.filename or ''}: {error.strerror or error}", err=True)
        sys.exit(1)


@click.group(context_settings=CONTEXT)
@click.version_option(package_name="msad")
def msad() -> None:
    """Find the best defect detector for each product: search on Ray, browse in MLflow, pull by run ID.

    \b
    Example: msad search --categories brick,gear --trials 8 --name first
    """


def _names(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[str, ...] | None:
    return tuple(name.strip() for name in text.split(",") if name.strip()) if text is not None else None


def _settings(_context: click.Context, _option: click.Parameter, lines: tuple[str, ...]) -> dict[str, Any] | None:
    settings = {}
    for line in lines:
        path, equals, value = line.partition("=")
        if not equals:
            raise click.BadParameter(f"{line!r}: expected PATH=VALUE, e.g. model/base_width=16")
        try:
            settings[path.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise click.BadParameter(f"{line!r}: the value is not valid YAML") from None
    return settings or None


def _spaces(_context: click.Context, _option: click.Parameter, lines: tuple[str, ...]) -> dict[str, str] | None:
    for line in lines:
        if "=" not in line:
            raise click.BadParameter(f"{line!r}: expected ARCHITECTURE=SPACE, e.g. baseline=my_module:WIDE")
    return dict(line.split("=", 1) for line in lines) or None


tracking_option = click.option(
    "--tracking-uri",
    metavar="URI",
    help="MLflow server or store. [default: $MLFLOW_TRACKING_URI, else mlflow.db in the working directory]",
)
SWEEP_OPTIONS = [
    click.option("--dataset", type=click.Path(path_type=Path), help="Root in the MVTec AD layout. [default: the demo]"),
    click.option("--categories", callback=_names, metavar="A,B", help="[default: all the dataset has]"),
    click.option(
        "--architectures",
        callback=_names,
        metavar="A,B",
        help="Names, or Python paths of your own: my_module:MyDetector. [default: feature_pyramid]",
    ),
    click.option("--epochs", type=int, help="Most passes over the training images. [default: the architecture's]"),
    click.option("--image-size", type=int, help="Side in pixels of the square worked on. [default: 256]"),
    click.option("--batch-size", type=int, help="Images per step. [default: the architecture's]"),
    click.option("--seed", type=int, help="[default: 0]"),
    click.option("--objective", help="validation_score, validation_image_auroc or validation_pixel_ap."),
    click.option(
        "--set",
        "parameters",
        multiple=True,
        callback=_settings,
        metavar="PATH=VALUE",
        help="Fix a parameter, e.g. model/base_width=16. Repeatable.",
    ),
    click.option(
        "--final-seeds",
        type=int,
        help="Train the winner with so many seeds, each on another split of the good images, and report mean ± sd; the "
        "first one's model is delivered. None trains on all good images: the threshold needs unseen ones. [default: 1]",
    ),
    click.option(
        "--executor",
        type=click.Choice(["auto", "direct", "train"]),
        help="How a trial runs: in a Ray Train job of its own, or inside a warm Tune trial. [default: auto]",
    ),
    click.option("--cpus-per-trial", type=float, help="[default: 1]"),
    click.option("--gpus-per-trial", type=float, help="May be a fraction. [default: 1 where there is a GPU]"),
    click.option("--concurrency", type=int, help="Most trials at once. [default: as many as fit]"),
    click.option("--storage", type=click.Path(path_type=Path), help="Folder of all sweeps. [default: sweeps]"),
    click.option("--address", help="A running Ray cluster: auto or HOST:PORT. [default: start one here]"),
    click.option("--name", help="Name of the sweep and of its MLflow experiment. [default: from the time]"),
    tracking_option,
]


def _sweep_options(command: Any) -> Any:
    for option in reversed(SWEEP_OPTIONS):
        command = option(command)
    return command


@msad.command(context_settings=CONTEXT)
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.option("--trials", type=int, help="Configurations to try per category and architecture. [default: 10]")
@click.option(
    "--space",
    "search_spaces",
    multiple=True,
    callback=_spaces,
    metavar="ARCHITECTURE=SPACE",
    help="Search other ranges: a Python path, e.g. baseline=my_module:WIDE. Repeatable.",
)
@click.option("--pruner", type=click.Choice(["asha", "median", "none"]), help="Stops weak trials. [default: asha]")
@click.option(
    "--report-trials/--no-report-trials",
    default=None,
    help="Once every winner is chosen and tested, test all complete trials too, to report how well validation chose.",
)
@click.option("--resume", metavar="NAME", help="Finish an interrupted sweep; only --storage is used beside it.")
@_sweep_options
def search(config: Path | None, resume: str | None, **options: Any) -> int:
    """Search the best configuration of each category and architecture.

    CONFIG is a YAML file with the same settings; options given here take precedence.

    \b
    Examples:
      msad search --dataset mvtec --categories bottle,cable --trials 20 --name first
      msad search --resume first
    """
    from orchestrator import sweep

    if resume:
        return _report(sweep.resume(resume, options["storage"] or Path("sweeps")))
    return _report(sweep.start(_config(config, options)))


@msad.command(context_settings=CONTEXT)
@_sweep_options
def train(**options: Any) -> int:
    """Train one fixed configuration per category and architecture, without a search.

    \b
    Example: msad train --dataset mvtec --categories bottle --architectures multiscale --set learning_rate=0.002
    """
    from orchestrator import sweep

    return _report(sweep.start(_config(None, {**options, "trials": 0})))


def _config(file: Path | None, options: dict[str, Any]) -> Any:
    from orchestrator.config import load, make_config

    values = load(file) if file else {}
    given = {name: value for name, value in options.items() if value is not None}
    for option, name in (("cpus_per_trial", "cpus"), ("gpus_per_trial", "gpus"), ("concurrency", "concurrency")):
        if option in given:
            given.setdefault("resources", {})[name] = given.pop(option)
    for name in ("resources", "parameters", "search_spaces"):  # an option replaces one entry of the file's, not all
        if name in given and isinstance(values.get(name), dict):
            given[name] = values[name] | given[name]
    values |= given
    values.setdefault("name", time.strftime("sweep-%Y%m%d-%H%M%S"))
    if "dataset" not in values:
        values["dataset"] = _demo()
    return make_config(values)


def _demo() -> Path:
    from data_io.cache import default_cache_dir
    from data_io.demo import make_demo

    folder = default_cache_dir() / "demo"
    click.echo(f"no --dataset given: using the demo dataset in {folder}", err=True)
    return make_demo(folder)


def _report(outcome: Any) -> int:
    from orchestrator.compare import leaderboard
    from orchestrator.leaderboard_text import format_leaderboard

    for study, reason in outcome.failed_studies.items():
        click.echo(f"{study} has no result: {reason}", err=True)
    if outcome.undelivered:
        click.echo(
            f"{outcome.undelivered} run(s) could not be delivered to {outcome.tracking_uri}; their results are safe. "
            f"Deliver them with: msad search --resume {outcome.name}",
            err=True,
        )
    else:
        click.echo(format_leaderboard(leaderboard(outcome.name, outcome.tracking_uri)))
        click.echo(f"Browse: msad ui    Again: msad compare {outcome.name}")
    return 0 if outcome.ok else 1


@msad.command(context_settings=CONTEXT)
@click.argument("sweep", required=False)
@click.option("--csv", "csv_file", metavar="FILE", help="Write the table as CSV; - for standard output.")
@click.option("--json", "json_file", metavar="FILE", help="Write the table as JSON; - for standard output.")
@tracking_option
def compare(sweep: str | None, csv_file: str | None, json_file: str | None, tracking_uri: str | None) -> int:
    """Show the best configuration per category and architecture of a sweep, the newest one by default.

    \b
    Example: msad compare first --json -
    """
    from orchestrator.compare import leaderboard
    from orchestrator.leaderboard_text import format_leaderboard
    from orchestrator.tracking import default_tracking_uri

    table = leaderboard(sweep, tracking_uri or default_tracking_uri())
    outputs = ((csv_file, lambda: table.to_csv(index=False)), (json_file, lambda: _json(table)))
    for file, text in outputs:
        if file == "-":
            click.echo(text(), nl=False)
        elif file:
            Path(file).write_text(text())
    if not csv_file and not json_file:
        click.echo(format_leaderboard(table))
    return 0


def _json(table: Any) -> str:
    return table.to_json(orient="records", indent=2) + "\n"


@msad.command(context_settings=CONTEXT)
@click.argument("run_id")
@click.option("--to", required=True, type=click.Path(path_type=Path), help="Folder to make; must not hold anything.")
@tracking_option
def pull(run_id: str, to: Path, tracking_uri: str | None) -> int:
    """Fetch a trained model by the run ID of a trial or a study, or as CATEGORY@best; verified by checksum.

    \b
    Example: msad pull bottle@best --to models/bottle
    """
    from orchestrator.model_store import pull as pull_bundle

    click.echo(f"pulled to {pull_bundle(run_id, to, tracking_uri)}")
    return 0


@msad.command(context_settings=CONTEXT)
@click.argument("model")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", default="predictions", show_default=True, type=click.Path(path_type=Path))
@click.option("--threshold", type=float, help="Call images above this score anomalous. [default: the model's own]")
@click.option("--batch-size", default=8, show_default=True, type=click.IntRange(1))
@tracking_option
def predict(
    model: str, images: tuple[Path, ...], out: Path, threshold: float | None, batch_size: int, tracking_uri: str | None
) -> int:
    """Score images (files or folders) with a pulled model's folder or a run ID: scores.csv and heatmaps.

    \b
    Example: msad predict models/bottle new_photographs --out predictions
    """
    from orchestrator.bundles import Bundle
    from orchestrator.predict import predict_folder

    bundle = Bundle.load(model, tracking_uri=tracking_uri)
    result = predict_folder(bundle, list(images), out, batch_size=batch_size, threshold=threshold)
    click.echo(f"{result.scored} image(s) scored, {result.anomalous} anomalous; see {out / 'scores.csv'}")
    for path, reason in result.failed.items():
        click.echo(f"skipped {path}: {reason}", err=True)
    return 1 if result.failed else 0


@msad.command(context_settings=CONTEXT)
@click.argument("model")
@click.argument("root", type=click.Path(path_type=Path))
@click.option("--category", help="[default: the one the model was trained on]")
@click.option(
    "--masks-at",
    type=click.Choice(["model", "native"]),
    default="model",
    show_default=True,
    help="Measure pixels at the model's image size or at the masks' own.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for pictures and scores.csv.")
@tracking_option
def evaluate(
    model: str, root: Path, category: str | None, masks_at: str, out: Path | None, tracking_uri: str | None
) -> int:
    """Measure a model (folder or run ID) on the test split of a dataset.

    \b
    Example: msad evaluate models/bottle mvtec --out report
    """
    from data_io.cache import default_cache_dir
    from orchestrator.bundles import Bundle
    from orchestrator.evaluation import evaluate as measure
    from orchestrator.pictures import save_evaluation

    bundle = Bundle.load(model, tracking_uri=tracking_uri)
    result = measure(bundle, root, category or bundle.job.category, default_cache_dir(), masks_at=masks_at)
    for name, value in result.metrics.items():
        click.echo(f"{name:22} {value:.4f}")
    click.echo(result.per_defect_type.to_string(float_format="%.4f"))
    if out:
        save_evaluation(result, out)
        result.scores.to_csv(out / "scores.csv", index=False)
    return 0


@msad.command(context_settings=CONTEXT)
@click.option("--port", default=5000, show_default=True, type=int)
@tracking_option
def ui(port: int, tracking_uri: str | None) -> int:
    """Open the MLflow UI on the store that the sweeps are in; it listens on this machine only.

    \b
    Example: msad ui --port 5001
    """
    from orchestrator.tracking import serve_ui

    return serve_ui(port, tracking_uri)


@msad.group(context_settings=CONTEXT)
def data() -> None:
    """Look at datasets."""


@data.command("check", context_settings=CONTEXT)
@click.argument("root", type=click.Path(path_type=Path))
def data_check(root: Path) -> int:
    """Report what a dataset holds and everything that is wrong with it.

    \b
    Example: msad data check mvtec
    """
    from data_io.check import check, format_report

    report = check(root)
    click.echo(format_report(report))
    return 0 if report.ok else 1


@data.command("demo", context_settings=CONTEXT)
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True, type=int)
def data_demo(directory: Path, seed: int) -> int:
    """Make the demo dataset: real textures and a drawn part, with defects from faint to plain and exact masks.

    \b
    Example: msad data demo demo
    """
    from data_io.demo import make_demo

    click.echo(f"demo dataset in {make_demo(directory, seed=seed)}")
    return 0
