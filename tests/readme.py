"""Runs what README.md shows, in order: every line after `$` in its console blocks, and every Python block.

    python tests/readme.py [README.md]

The commands share one folder, so each may use what an earlier one made, as a reader would. A block marked with the
comment `<!-- not run: why -->` above it is left out and named. The first command that fails ends the run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
BLOCK = re.compile(r"(<!-- not run: (?P<why>[^>]*) -->\n)?```(?P<kind>console|python)\n(?P<text>.*?)```", re.DOTALL)


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Yield `(shell or python, code)`; a shell command may go on over lines that end in a backslash."""
    for block in BLOCK.finditer(text):
        if block["why"]:
            print(f"not run ({block['why']}):\n{block['text']}", flush=True)
        elif block["kind"] == "python":
            yield "python", block["text"]
        else:
            joined = block["text"].replace("\\\n", " ")
            yield from (("shell", line[2:]) for line in joined.splitlines() if line.startswith("$ "))


def main() -> None:
    readme = Path(sys.argv[1]) if len(sys.argv) > 1 else REPOSITORY / "README.md"
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
    }
    done = 0
    for kind, code in commands(readme.read_text()):
        print(f"\n=== {code.strip()}", flush=True)
        began = time.monotonic()
        command = ["bash", "-euo", "pipefail", "-c", code] if kind == "shell" else [sys.executable, "-c", code]
        status = subprocess.run(command, cwd=REPOSITORY, env=environment).returncode
        print(f"=== exit code {status}, {time.monotonic() - began:.0f} s", flush=True)
        if status:
            sys.exit(f"{readme.name}: this command failed: {code.strip()}")
        done += 1
    if not done:
        sys.exit(f"{readme}: no command found")
    print(f"\n{done} passed, 0 failed")


if __name__ == "__main__":
    main()
