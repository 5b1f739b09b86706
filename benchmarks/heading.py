"""What stands above a benchmark's figures: the machine and versions, and the command without paths of one machine."""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
import time
from pathlib import Path

import torch

PATHS = ("--root", "--originals", "--cache", "--curves", "--output")


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
    words = [word for at, word in enumerate(sys.argv) if word not in PATHS and sys.argv[at - 1] not in PATHS]
    root = ["--root", "ROOT"] if "--root" in sys.argv else []
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *root, *words[1:]])
