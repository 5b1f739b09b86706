"""The command on what was predicted over time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from msad.terminal.options import CONTEXT, json_option, write_json
from msad.terminal.outputs import output_file

if TYPE_CHECKING:
    from msad.bundle.drift_history import History


@click.command(context_settings=CONTEXT)
@click.argument("predictions", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--to",
    default="drift.png",
    show_default=True,
    type=click.Path(path_type=Path),
    callback=output_file,
    help="Picture to write.",
)
@click.option(
    "--window", default=50, show_default=True, type=int, metavar="N", help="Images that are compared at once."
)
@click.option(
    "--rate",
    default=0.01,
    show_default=True,
    type=float,
    help="Chance that anything is told although nothing has changed.",
)
@json_option("the windows and what has changed in each")
def drift(predictions: tuple[Path, ...], to: Path, window: int, rate: float, json_file: str | None) -> int:
    """Draw over time what `msad predict` has seen: alarms, scores, brightness, contrast, sharpness, noise and size.

    PREDICTIONS are folders that it has written with one model. Images are taken in the order in which their files were
    changed, and compared, window by window, with the held-out good images that the model's thresholds rest on.

    \b
    Example: msad drift predictions/monday predictions/tuesday --to drift.png
    """
    from msad.bundle.drift_history import read_history
    from msad.pictures.drift_picture import save_drift

    history = read_history(predictions, window, rate)
    save_drift(history, to)
    if not write_json(json_file, history.to_dict() | {"picture": to}):
        click.echo(format_history(history))
        click.echo(f"picture in {to}")
    return 0


def format_history(history: History) -> str:
    """Lay windows out, a line each: since when, how many images and alarms, what has changed."""
    lines = [f"{history.source}: {sum(one.images for one in history.windows)} images"]
    for one in history.windows:
        told = one.words or "as the held-out images"
        lines.append(f"{one.first:%Y-%m-%d %H:%M}  {one.images:>5} images  {one.alarms:>5.0%} alarms  {told}")
    if not any(one.findings for one in history.windows):
        lines.append(f"nothing has changed that is certain (false alarms: {history.rate:.3g} of such comparisons)")
    return "\n".join(lines)
