"""Images on disk to tables of samples to arrays. Knows neither the models nor the orchestration."""

import sys

if sys.platform == "win32":
    raise ImportError(
        "msad runs on Linux and macOS: it needs locks of files that Windows does not have. Install it inside WSL 2, or "
        "take a model to Windows as one file that needs no msad, written by `msad export` on another machine"
    )
