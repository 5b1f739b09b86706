"""The commands that look at what is there, configurations, datasets and results, and start nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from msad.terminal import completion
from msad.terminal.options import (
    CONTEXT,
    bit_depth_option,
    categories_option,
    demo_folder,
    image_size_option,
    json_option,
    layout_option,
    search_options,
    settings_of,
    tracking_option,
    write_json,
)
from msad.terminal.outputs import output_file, output_folder, write_file


@click.group(context_settings=CONTEXT)
def config() -> None:
    """Look at configurations."""


@config.command("show", context_settings=CONTEXT)
@search_options
@json_option("the same")
def config_show(config: Path | None, json_file: str | None, **options: Any) -> int:
    """Show what `msad search` would run: all settings, and each architecture's job and searched ranges, as YAML.

    Nothing is started. The output is a configuration file itself.

    \b
    Example: msad config show sweep.yaml --trials 50
    """
    from msad.search.config import make_config
    from msad.terminal.config_show import describe, to_yaml

    sweep = make_config({"dataset": demo_folder(), **settings_of(config, options)})
    if not sweep.dataset.exists() and sweep.dataset != demo_folder():
        click.echo(f"{sweep.dataset}: no such folder, so its categories are not known", err=True)
    settings, studies = describe(sweep)
    if not write_json(json_file, {"settings": settings, "studies": studies}):
        click.echo(to_yaml(settings, studies), nl=False)
    return 0


@click.group(context_settings=CONTEXT)
def data() -> None:
    """Look at datasets, and clear the cache of what was decoded."""


@data.command("check", context_settings=CONTEXT)
@click.argument("root", type=click.Path(path_type=Path))
@layout_option
@bit_depth_option
@json_option("the report")
def data_check(root: Path, layout: str | None, bit_depth: int | None, json_file: str | None) -> int:
    """Report what a dataset holds and everything that is wrong with it.

    \b
    Example: msad data check mvtec
    """
    from msad.data_io.check import check, format_report
    from msad.progress import count_files, reading_files

    with reading_files("Checking", expected=count_files(root)):
        report = check(root, layout=layout or "auto", bit_depth=bit_depth)
    if not write_json(json_file, report.to_dict()):
        click.echo(format_report(report))
    return 0 if report.ok else 1


@data.command("suspects", context_settings=CONTEXT)
@click.argument("root", type=click.Path(path_type=Path))
@categories_option
@layout_option
@image_size_option
@bit_depth_option
@click.option("--top", default=10, show_default=True, type=click.IntRange(1), help="Images to list of each category.")
@click.option(
    "--out",
    default="suspects",
    show_default=True,
    type=click.Path(path_type=Path),
    callback=output_folder,
    help="Folder for suspects.csv, with every image, and a picture per category.",
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, ...")
@json_option("all images with their ranks")
def data_suspects(
    root: Path,
    categories: tuple[str, ...] | None,
    layout: str | None,
    image_size: str | None,
    bit_depth: int | None,
    top: int,
    out: Path,
    device: str,
    json_file: str | None,
) -> int:
    """Rank the good training images by how unusual the others find them: a defect among them teaches that it is normal.

    \b
    Example: msad data suspects mvtec --categories bottle
    """
    from msad.data_io.layout import choose_categories
    from msad.data_io.shape import parse_size
    from msad.pictures.suspects import save_suspects
    from msad.progress import track
    from msad.terminal.suspects_text import format_suspects, suspects_table
    from msad.training.suspects import find_suspects

    settings = {"layout": layout or "auto", "image_size": parse_size(image_size or 256), "bit_depth": bit_depth}
    names = choose_categories(root, categories, settings["layout"])
    found = [find_suspects(root, name, **settings, device=device) for name in track(names, "Looking at good images")]
    table = suspects_table(found)
    write_file(out / "suspects.csv", table.to_csv(index=False))
    for suspects in found:
        save_suspects(suspects, out / f"{suspects.category}.png")
    if not write_json(json_file, table.to_dict("records")):
        click.echo(format_suspects(found, root, top))
        click.echo(f"All of them, and pictures of the first: {out}")
    return 0


@data.command("clean", context_settings=CONTEXT)
@click.option(
    "--unused-for",
    default=30.0,
    show_default=True,
    type=click.FloatRange(min=0),
    metavar="DAYS",
    help="Remove what no search asked for in so many days; 0 removes all.",
)
@json_option("the counts and bytes")
def data_clean(unused_for: float, json_file: str | None) -> int:
    """Remove decoded images and features from this machine's cache ($MSAD_CACHE, else msad in your cache folder).

    Whatever is missing later is made anew, so this is safe at any time, also while a search runs.

    \b
    Example: msad data clean --unused-for 7
    """
    from msad.data_io.array_cache import default_cache_dir, remove_unused

    cache = default_cache_dir()
    done = remove_unused(unused_for * 86400, cache)
    if not write_json(json_file, {"cache": cache, **dataclasses.asdict(done)}):
        removed, kept = (f"{size / 1e9:.1f} GB" for size in (done.removed_bytes, done.kept_bytes))
        click.echo(f"{cache}: {done.removed} removed ({removed}), {done.kept} kept ({kept})")
    return 0


@data.command("demo", context_settings=CONTEXT)
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True, type=int)
def data_demo(directory: Path, seed: int) -> int:
    """Make the demo dataset: real textures and a drawn part, with defects from faint to plain and exact masks.

    \b
    Example: msad data demo demo
    """
    from msad.data_io.demo import make_demo

    click.echo(f"demo dataset in {make_demo(directory, seed=seed)}")
    return 0


@click.command(context_settings=CONTEXT)
@click.argument("sweep", required=False, shell_complete=completion.tracked_sweeps)
@click.option(
    "--csv", "csv_file", metavar="FILE", callback=output_file, help="Write the table as CSV; - for standard output."
)
@json_option("the table")
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    metavar="FILE",
    callback=output_file,
    help="Write a page with all pictures, complete in itself.",
)
@click.option(
    "--speed",
    type=click.Path(path_type=Path),
    metavar="FILE",
    callback=output_file,
    help="Draw all trials into a PNG: validation score against the time that an image takes.",
)
@click.option(
    "--latency-budget",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MS",
    help="Name each category's best among the trials that take no longer. [default: what it was searched with]",
)
@tracking_option
def compare(
    sweep: str | None,
    csv_file: str | None,
    json_file: str | None,
    html: Path | None,
    speed: Path | None,
    latency_budget: float | None,
    tracking_uri: str | None,
) -> int:
    """Show the best configuration per category and architecture of a sweep, the newest one by default.

    \b
    Examples:
      msad compare first --json -
      msad compare first --html report.html
      msad compare first --speed speed.png --latency-budget 20
    """
    from msad.terminal.leaderboard_text import format_leaderboard
    from msad.tracking.compare import leaderboard
    from msad.tracking.store import default_tracking_uri

    uri = tracking_uri or default_tracking_uri()
    table = leaderboard(sweep, uri)
    for study in table.attrs["deleted"]:
        click.echo(f"{study} is left out: its run was deleted in MLflow; `msad search --resume` restores it", err=True)
    if csv_file == "-":
        click.echo(table.to_csv(index=False), nl=False)
    elif csv_file:
        write_file(Path(csv_file), table.to_csv(index=False))
    write_json(json_file, table.to_dict("records"))
    if html:
        from msad.report.page import write_report

        click.echo(f"report in {write_report(sweep, uri, html)}", err=True)
    if speed or latency_budget:
        _tell_speed(sweep, uri, speed, latency_budget, aside="-" in (csv_file, json_file))
    elif not csv_file and not json_file and not html:
        click.echo(format_leaderboard(table))
    return 0


def _tell_speed(sweep: str | None, uri: str, picture: Path | None, budget: float | None, *, aside: bool) -> None:
    """Name the best within a budget; `aside` of what standard output is for."""
    from msad.terminal.speed_text import format_speed
    from msad.tracking.speed import speed_table

    frame = speed_table(sweep, uri, budget)
    if picture:
        from msad.pictures.speed import save_speed

        save_speed(frame, picture)
    click.echo(format_speed(frame), err=aside)


@click.command(context_settings=CONTEXT)
@click.option("--port", default=5000, show_default=True, type=int)
@tracking_option
def ui(port: int, tracking_uri: str | None) -> int:
    """Open the MLflow UI on the store that the sweeps are in; it listens on this machine only.

    \b
    Example: msad ui --port 5001
    """
    from msad.tracking.ui.server import serve_ui

    return serve_ui(port, tracking_uri)
