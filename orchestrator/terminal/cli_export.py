"""The commands on files that leave msad: write one, time one beside the model it was made of."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from msad.terminal import completion
from msad.terminal.options import CONTEXT, json_option, tracking_option, write_json
from msad.terminal.outputs import output_file

_PATHS = click.Path(path_type=Path)


@click.command(context_settings=CONTEXT)
@click.argument("model", shell_complete=completion.models)
@click.option(
    "--to",
    required=True,
    type=click.Path(path_type=Path),
    callback=output_file,
    help="FILE.onnx, or FILE.pt2 for torch alone.",
)
@click.option("--batch", type=click.IntRange(1), metavar="N", help="Images in a call. [default: any number]")
@click.option("--size", metavar="HxW", help="Height and width of the photographs, as 1024x1024. [default: any]")
@click.option(
    "--precision",
    type=click.Choice(["float32", "float16", "int8"]),
    default="float32",
    show_default=True,
    help="Of the network: half floats for GPUs, 8 bits for CPUs. Measure what it costs with msad evaluate FILE.",
)
@click.option(
    "--calibrate-on",
    multiple=True,
    type=_PATHS,
    metavar="PATH",
    help="For int8: the dataset, of which the good training images are taken, or good images. Repeatable.",
)
@click.option(
    "--check-on",
    multiple=True,
    type=_PATHS,
    metavar="PATH",
    help="Image or folder to compare file and model on. Repeatable. [default: photographs that come with scikit-image]",
)
@click.option("--check-with", multiple=True, type=click.Choice(["openvino"]), help="Compare in this runtime too.")
@tracking_option
@json_option("the file and how far it is from the model")
def export(
    model: str,
    to: Path,
    check_on: tuple[Path, ...],
    check_with: tuple[str, ...],
    tracking_uri: str | None,
    json_file: str | None,
    **options: Any,
) -> int:
    """Write a model (folder or run ID) as one file that needs no msad: photographs in; score, verdict, map, mask out.

    \b
    Examples:
      msad export bottle@champion --to bottle.onnx
      msad export bottle@champion --to bottle.onnx --batch 1 --size 900x900 --check-with openvino
      msad export bottle@champion --to bottle.onnx --precision int8 --calibrate-on mvtec
    """
    from msad.bundle.export import export as write
    from msad.bundle.export_form import Form
    from msad.tracking.loading import load

    form = Form(also_in=check_with, **options)
    bundle = load(model, device="cpu", tracking_uri=tracking_uri)
    click.echo("exporting and checking, some ten seconds", err=True)
    done = write(bundle, to, check_on, form)
    if not write_json(json_file, dataclasses.asdict(done)):
        click.echo(f"{done.path}: {done.path.stat().st_size / 1e6:.1f} MB; {_difference(done)}")
        for name, other in done.also_in.items():
            click.echo(f"in {name} {_difference(other)}")
    return 0


def _difference(done: Any) -> str:
    text = (
        f"on {done.images} images within {done.score:.2g} of the model's scores and {done.map:.2g} of its maps, whose "
        f"range is {done.range:.2g}"
    )
    return text + (f"; {done.verdicts} verdict(s) differ" if done.verdicts else "")


@click.command(context_settings=CONTEXT)
@click.argument("model", shell_complete=completion.models)
@click.argument("images", nargs=-1, type=_PATHS)
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=click.IntRange(1),
    metavar="N",
    help="Images in a call. Repeatable. [default: 1 and 16]",
)
@click.option(
    "--seconds",
    default=2.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="For each stage and batch, at least; ten calls at least.",
)
@click.option("--device", help="cpu, cuda, cuda:1, ... [default: the GPU if there is one; for a file the cpu]")
@click.option("--threads", type=click.IntRange(1), help="Of the CPU. [default: all]")
@tracking_option
@json_option("the timings")
def bench(
    model: str,
    images: tuple[Path, ...],
    batches: tuple[int, ...],
    seconds: float,
    device: str | None,
    threads: int | None,
    tracking_uri: str | None,
    json_file: str | None,
) -> int:
    """Time a model (folder or run ID) or an exported file: latency, throughput, with and without reading.

    IMAGES are photographs to time it with, or folders of them; by default one of 400×600 pixels.

    \b
    Examples:
      msad bench bottle@champion --device cpu --threads 1
      msad bench bottle.onnx photographs --batch 1
    """
    from msad.bundle.bench import bench as measure
    from msad.bundle.exported_model import SUFFIXES, ExportedModel
    from msad.terminal.bench_text import format_bench
    from msad.tracking.loading import load

    if model.endswith(SUFFIXES):
        timed = ExportedModel(Path(model), device or "cpu", threads or 0)
    else:
        timed = load(model, device, tracking_uri)
    result = measure(timed, images, batches or (1, 16), seconds, threads)
    if not write_json(json_file, result.to_dict()):
        click.echo(format_bench(result))
    return 0
