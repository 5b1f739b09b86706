"""Runs what README.md and the pages in docs/ show, in order: console lines after `$`, Python blocks, and their files.

    python tests/readme.py [--quick] [README.md docs/extending.md ...]

All share one folder, so each command may use what an earlier one made, as a reader would; every page begins in the
state that the README leaves behind. A block whose first line is `# file: NAME` is written to that file instead of run.
A block marked with the comment `<!-- not run: why -->` above it is left out and named; with `--quick` so is one marked
`<!-- long: why -->`. The first command that fails ends the run.
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
BLOCK = re.compile(
    r"(<!-- (?P<mark>not run|long): (?P<why>[^>]*) -->\n)?```(?P<kind>console|python|yaml|toml)\n"
    r"(# file: (?P<file>\S+)\n)?(?P<text>.*?)```",
    re.DOTALL,
)


def commands(text: str, quick: bool) -> Iterator[tuple[str, str]]:
    """Yield `(shell or python or a file's name, code)`; a shell command goes on over lines that end in a backslash."""
    for block in BLOCK.finditer(text):
        if block["mark"] == "not run" or (block["mark"] == "long" and quick):
            print(f"not run ({block['why']}):\n{block['text']}", flush=True)
        elif block["file"]:
            yield block["file"], block["text"]
        elif block["kind"] == "python":
            yield "python", block["text"]
        elif block["kind"] == "console":
            joined = block["text"].replace("\\\n", " ")
            yield from (("shell", line[2:]) for line in joined.splitlines() if line.startswith("$ "))


def main() -> None:
    quick = "--quick" in sys.argv[1:]
    pages = [Path(name) for name in sys.argv[1:] if name != "--quick"]
    pages = pages or [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
    }
    done = 0
    for page in pages:
        for kind, code in commands(page.read_text(), quick):
            print(f"\n=== {page.name}: {code.strip()}", flush=True)
            if kind not in ("shell", "python"):
                (REPOSITORY / kind).write_text(code)
                continue
            began = time.monotonic()
            command = ["bash", "-euo", "pipefail", "-c", code] if kind == "shell" else [sys.executable, "-c", code]
            status = subprocess.run(command, cwd=REPOSITORY, env=environment).returncode
            print(f"=== exit code {status}, {time.monotonic() - began:.0f} s", flush=True)
            if status:
                sys.exit(f"{page.name}: this command failed: {code.strip()}")
            done += 1
    if not done:
        sys.exit(f"{', '.join(map(str, pages))}: no command found")
    print(f"\n{done} passed, 0 failed")


if __name__ == "__main__":
    main()
