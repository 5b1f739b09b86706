"""Options that several commands share, and what becomes of their words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import yaml

from msad.addresses import public
from msad.search.plain_yaml import plain_yaml
from msad.terminal import completion
from msad.terminal.outputs import output_file, write_file

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


# One of several names between commas; in double quotes, as CSV has them, it may hold commas itself.
_NAME = re.compile(r'\s*(?:"(?P<quoted>(?:[^"]|"")*)"|(?P<plain>[^,]*?))\s*(?:,|$)')


def split_names(text: str) -> list[str]:
    """Return the names in `A,B`; one in double quotes may hold commas, and doubled double quotes."""
    names, place = [], 0
    while place < len(text):
        found = _NAME.match(text, place)
        quoted = found["quoted"]
        names.append(found["plain"] if quoted is None else quoted.replace('""', '"'))
        place = found.end()
    return [name for name in names if name]


def _names(_context: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> tuple[str, ...] | None:
    names = [name for text in texts for name in split_names(text)]
    if texts and not names:
        given = " ".join(map(repr, texts))
        raise click.BadParameter(f"no name in {given}; leave {option.opts[0]} away for the default")
    return tuple(names) or None


def _names_option(flag: str, complete: Callable[..., Any], help: str) -> Callable[..., Any]:
    """Return an option that takes names between commas, and may be given several times."""
    return click.option(flag, multiple=True, callback=_names, metavar="A,B", shell_complete=complete, help=help)


def _settings(_context: click.Context, _option: click.Parameter, lines: tuple[str, ...]) -> dict[str, Any] | None:
    settings = {}
    for line in lines:
        path, equals, value = line.partition("=")
        if (path := path.strip()) in settings:
            raise click.BadParameter(f"{path} is set twice: say it once")
        if not equals:
            raise click.BadParameter(f"{line!r}: expected PATH=VALUE, e.g. model/base_width=16")
        try:
            [settings[path]] = plain_yaml(value) or [None]
        except (yaml.YAMLError, ValueError):
            raise click.BadParameter(f"{line!r}: the value is not valid YAML") from None
    return settings or None


tracking_option = click.option(
    "--tracking-uri",
    metavar="URI",
    callback=lambda _context, _option, address: public(address) if address else address,
    help="MLflow server or store. [default: $MLFLOW_TRACKING_URI, else mlflow.db in the working directory] "
    "A relative path (sqlite:///FILE.db) is taken from the working directory.",
)

layout_option = click.option(
    "--layout",
    metavar="NAME",
    help="How the dataset is laid out: mvtec_ad, visa, folder, ... (docs/datasets.md); or by which lists: lookout, "
    "coco or csv, perhaps with settings, e.g. csv:good=OK (docs/moving-in.md). [default: told by its folders]",
)

categories_option = _names_option(
    "--categories",
    completion.categories,
    "Repeatable; a name with a comma in double quotes: '\"M4,5 bolt\",gear'. [default: all the dataset has]",
)

image_size_option = click.option(
    "--image-size",
    metavar="PIXELS|HEIGHTxWIDTH",
    help="What images are resized to: as many pixels as a square of this side has, in the shape of a category's "
    "photographs where they have one; or exactly this height and width, e.g. 416x160. [default: 256]",
)

bit_depth_option = click.option(
    "--bit-depth",
    type=click.Choice(["8", "10", "12", "14", "16"]),  # `msad.data_io.wide.BIT_DEPTHS`, which would load numpy
    callback=lambda _context, _option, text: int(text) if text else None,
    help="Bits that the camera fills of files of more than 8. [default: found on the good images]",
)


def json_option(what: str) -> Callable[[Any], Any]:
    """Return the option `--json FILE` of a command."""
    text = f"Write {what} as JSON; - for standard output, and nothing else there."
    return click.option("--json", "json_file", metavar="FILE", callback=output_file, help=text)


def write_json(file: str | None, values: Any) -> bool:
    """Write values where `--json` says, NaN as null; return whether the command is to say nothing else."""
    if file:
        text = json.dumps(_plain(values), indent=2, ensure_ascii=False, default=str)
        if file == "-":
            click.echo(text)
        else:
            write_file(Path(file), text + "\n")
    return file == "-"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    value = value.item() if hasattr(value, "item") else value  # NumPy's numbers
    return None if value != value else value


def _spaces(_context: click.Context, _option: click.Parameter, lines: tuple[str, ...]) -> dict[str, str] | None:
    for line in lines:
        if "=" not in line:
            raise click.BadParameter(f"{line!r}: expected ARCHITECTURE=SPACE, e.g. baseline=my_module:WIDE")
    names = [line.partition("=")[0] for line in lines]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise click.BadParameter(f"{twice} is given two search spaces: say which")
    return dict(line.split("=", 1) for line in lines) or None


def _gpus(_context: click.Context, _option: click.Parameter, text: str | None) -> float | str | None:
    try:
        return text if text in (None, "auto") else float(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither a number nor auto") from None


_SWEEP = [
    click.option("--dataset", type=click.Path(path_type=Path), help="Root of the images. [default: the demo]"),
    layout_option,
    categories_option,
    _names_option(
        "--joint",
        completion.categories,
        "Train one network on all of these products too: each has thresholds, a row and a champion of its own. "
        "--categories, those trained separately, are then these by default.",
    ),
    _names_option(
        "--architectures",
        completion.architectures,
        "Names, or Python paths of your own: my_module:MyDetector. [default: feature_ensemble]",
    ),
    click.option("--epochs", type=int, help="Most passes over the training images. [default: the architecture's]"),
    image_size_option,
    bit_depth_option,
    click.option("--batch-size", type=int, help="Images per step. [default: the architecture's]"),
    click.option("--seed", type=int, help="[default: 0]"),
    click.option("--objective", help="validation_score, validation_image_auroc or validation_pixel_ap."),
    click.option(
        "--train-on-defects/--no-train-on-defects",
        default=None,
        help="Train on every second known defect (CATEGORY/validation/DEFECT) that has a mask; else all of them help "
        "to choose, and none is trained on.",
    ),
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
    click.option(
        "--gpus-per-trial",
        callback=_gpus,
        metavar="NUMBER|auto",
        help="May be a fraction; auto measures what memory a trial takes and lets as many share a GPU as fit, or a "
        "machine without one. [default: 1 where there is a GPU]",
    ),
    click.option(
        "--workers-per-trial",
        type=int,
        help="Workers that train one trial together, each with these CPUs and GPUs: for large images. [default: 1]",
    ),
    click.option("--concurrency", type=int, help="Most trials at once. [default: as many as fit]"),
    click.option(
        "--trial-timeout",
        type=float,
        metavar="MINUTES",
        help="End a trial that hangs: one that has not been evaluated for so long; 0 waits for ever. [default: 120]",
    ),
    click.option(
        "--autoscaling/--no-autoscaling",
        default=None,
        help="The cluster adds nodes as trials ask for them: give --gpus-per-trial and --concurrency too.",
    ),
    click.option("--storage", type=click.Path(path_type=Path), help="Folder of all sweeps. [default: sweeps]"),
    click.option(
        "--worker-storage",
        metavar="URI",
        help="Where nodes that share no folder leave checkpoints and models, e.g. s3://BUCKET/FOLDER.",
    ),
    click.option("--address", help="A running Ray cluster: auto or HOST:PORT. [default: start one here]"),
    click.option("--name", help="Name of the sweep and of its MLflow experiment. [default: from the time]"),
    tracking_option,
]


_SEARCH = [
    click.argument("config", required=False, type=click.Path(path_type=Path)),
    click.option("--trials", type=int, help="Configurations to try per category and architecture. [default: 10]"),
    click.option(
        "--space",
        "search_spaces",
        multiple=True,
        callback=_spaces,
        metavar="ARCHITECTURE=SPACE",
        help="Search other ranges: a Python path, e.g. baseline=my_module:WIDE. Repeatable.",
    ),
    click.option(
        "--latency-budget",
        type=float,
        metavar="MS",
        help="The most that one image may take: a network that takes longer is not trained, nor counted as a trial.",
    ),
    click.option(
        "--latency-device",
        type=click.Choice(["cpu", "cuda"]),
        help="Where networks are timed. [default: where they are trained]",
    ),
    click.option("--pruner", type=click.Choice(["asha", "median", "none"]), help="Stops weak trials. [default: asha]"),
    click.option(
        "--report-trials/--no-report-trials",
        default=None,
        help="Once every winner is chosen and tested, test all complete trials too, to report how well validation "
        "chose.",
    ),
]


def sweep_options(command: Any) -> Any:
    """Add the options of a sweep to a command."""
    for option in reversed(_SWEEP):
        command = option(command)
    return command


def search_options(command: Any) -> Any:
    """Add a configuration file, the options of a search and those of a sweep to a command."""
    command = sweep_options(command)
    for option in reversed(_SEARCH):
        command = option(command)
    return command


RESUMED_WITH = ("storage", "dataset", "tracking_uri", "address", "trials")
"""The options of a sweep that mean something beside `--resume`."""


def refuse_settled(file: Path | None, options: dict[str, Any]) -> None:
    """Refuse what is given beside `--resume` and can't change any more: the trials of a study would not compare.

    Raises
    ------
    click.UsageError
        Names all of it.
    """
    flags = {parameter.name: parameter.opts[0] for parameter in click.get_current_context().command.params}
    given = [flags[name] for name, value in options.items() if value is not None and name not in RESUMED_WITH]
    given += [f"the file {file}"] * (file is not None)
    if given:
        raise click.UsageError(
            f"{', '.join(given)}: a sweep goes on with the settings that it began with; leave this away, or start "
            "another sweep without --resume"
        )


def settings_of(file: Path | None, options: dict[str, Any]) -> dict[str, Any]:
    """Return a sweep's settings: those of a file, and over them the options that were given."""
    from msad.search.config import default_name, load, overlay

    given = {name: value for name, value in options.items() if value is not None}
    for option, name in (
        ("cpus_per_trial", "cpus"),
        ("gpus_per_trial", "gpus"),
        ("workers_per_trial", "workers"),
        ("concurrency", "concurrency"),
        ("autoscaling", "autoscaling"),
    ):
        if option in given:
            given.setdefault("resources", {})[name] = given.pop(option)
    return overlay({"name": default_name(), **(load(file) if file else {})}, given)


def demo_folder() -> Path:
    """Return where the demo dataset is made when none is given."""
    from msad.data_io.cache import default_cache_dir

    return default_cache_dir() / "demo"
