"""What benchmarks on a dataset begin with: their common options; and what stands above the figures of each.

That is the machine and versions, and the command without paths of one machine.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
import time
from pathlib import Path

import torch

PATHS = ("--root", "--originals", "--cache", "--curves", "--bundles", "--output")


def names(text: str) -> tuple[str, ...]:
    """Split a list of names at its commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser of the options that benchmarks on a dataset share."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--root", type=Path, required=True, help="dataset with test images, for pixel figures with masks")
    made.add_argument("--categories", type=names, default=(), help="default: all")
    made.add_argument("--threads", type=int, default=torch.get_num_threads())
    made.add_argument("--cache", type=Path, help="of decoded images; default: msad's own")
    made.add_argument("--output", type=Path, help="write what is printed last here too")
    return made


def machine(device: torch.device, threads: int) -> str:
    """Return the device, the versions and the date, in a line."""
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU, {threads} threads"
    return f"{where}; torch {torch.__version__}; Python {platform.python_version()}; {time.strftime('%Y-%m-%d')}"


def tell(options: argparse.Namespace, device: torch.device, result: str) -> None:
    """Print a result below its heading, and write both to `--output`."""
    text = f"{machine(device, options.threads)}\n{command()}\n\n{result}"
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


def command() -> str:
    """Return how the running script was called, `PATHS` left out."""
    words, is_path = ["--root", "ROOT"] if "--root" in sys.argv else [], False
    for word in sys.argv[1:]:
        is_path = word in PATHS if word.startswith("--") else is_path  # an option may have several
        words += [] if is_path else [word]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])
