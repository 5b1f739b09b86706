"""The C sources of this folder, compiled for the machine they run on: what torch's operators on a CPU do too slowly.

A process that is to use them calls `prepare`; without it, or without a C compiler, everything is computed by torch.
They are plain C without torch's headers, so all of them take a few seconds to compile, once per machine.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

# By name: the source, and what it is compiled with.
_LIBRARIES = {
    "enlarge_bfloat16": ("enlarge.c", "-DBFLOAT16"),
    "enlarge_float32": ("enlarge.c",),
    "feature_distance_bfloat16": ("feature_distance.c", "-DBFLOAT16"),
    "feature_distance_float32": ("feature_distance.c",),
    "norm_relu_bfloat16": ("norm_relu.c", "-DBFLOAT16"),
    "norm_relu_float32": ("norm_relu.c",),
    "ssim_float32": ("ssim.c",),
}
_OPTIONS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")
_ON_X86 = ("-mprefer-vector-width=512",)  # compilers would use half of such registers
_loaded: dict[str, ctypes.CDLL] = {}


def prepare(directory: Path) -> str | None:
    """Load the libraries from a folder of this user's own in a directory; `$CC` or `cc` compiles those that it lacks.

    Returns None, or why they cannot be had. Nothing is loaded from a folder into which others may write.
    """
    if _loaded:
        return None
    compiler = shlex.split(os.environ.get("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        return f"no C compiler: {compiler[0]} is not there (set CC to one)"
    command = [*compiler, *_OPTIONS, *(_ON_X86 if platform.machine() in ("x86_64", "AMD64") else ())]
    loaded = {}
    try:
        folder = directory / f"kernels-{os.getuid()}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            return f"{folder}: others may write there, and this process would run it: make it yours alone (chmod 700)"
        known = Path(__file__).with_name("element.h").read_bytes() + repr((command, _processor())).encode()
        for name, (source, *options) in _LIBRARIES.items():
            path = Path(__file__).with_name(source)
            file = folder / f"{name}-{hashlib.sha256(known + path.read_bytes()).hexdigest()[:16]}.so"
            if not file.exists():
                _compile([*command, *options, str(path), "-lm"], file)
            loaded[name] = ctypes.CDLL(str(file))
    except subprocess.CalledProcessError as error:
        return f"{shlex.join(compiler)}: {next(iter(error.stderr.splitlines()), error)}"
    except OSError as error:
        return str(error)
    _loaded.update(loaded)
    return None


def has(library: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Say whether a library is loaded, for values of this type on this device."""
    return device.type == "cpu" and _name(library, dtype) in _loaded


def interleaved(feature_BCHW: Tensor) -> Tensor:
    """Return a feature as the libraries read it: the channels of a place side by side."""
    return feature_BCHW.contiguous(memory_format=torch.channels_last)


def empty_like(feature_BCHW: Tensor, size: Sequence[int]) -> Tensor:
    """Return a feature of a size, of the same type, for a library to fill."""
    return torch.empty(size, dtype=feature_BCHW.dtype, device=feature_BCHW.device, memory_format=torch.channels_last)


def call(library: str, dtype: torch.dtype, function: str, *given: Tensor | int | float) -> None:
    """Call a function that takes pointers to the values of tensors, int64_t and float."""
    arguments = (
        ctypes.c_void_p(value.data_ptr())
        if isinstance(value, Tensor)
        else ctypes.c_int64(value)
        if isinstance(value, int)
        else ctypes.c_float(value)
        for value in given
    )
    getattr(_loaded[_name(library, dtype)], function)(*arguments)


def _name(library: str, dtype: torch.dtype) -> str:
    return f"{library}_{str(dtype).removeprefix('torch.')}"


def _compile(command: list[str], file: Path) -> None:
    """Compile beside the file and move it there, so that another process finds all of it or nothing."""
    with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
        made = Path(scratch) / file.name
        subprocess.run([*command, "-o", str(made)], capture_output=True, text=True, check=True)
        made.replace(file)


def _processor() -> str:
    """Return what tells processors apart, whose instructions differ: nodes may share a home directory."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
