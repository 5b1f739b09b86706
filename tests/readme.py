"""Runs what README.md and the pages in docs/ show, in order: console lines after `$`, Python blocks, and their files.

    python tests/readme.py [--quick] [README.md docs/extending.md ...]

The README's commands share this folder, so each may use what an earlier one made, as a reader would. Then the pages in
docs/ run side by side, each in a copy of the folder as the README left it; pages that are named share this folder. A
block whose first line is `# file: NAME` is written to that file instead of run. A block marked with the comment
`<!-- not run: why -->` above it is left out and named; with `--quick` so is one marked `<!-- long: why -->`. The first
command that fails ends its page, and one of the README's all.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

REPOSITORY = Path(__file__).parent.parent
AT_ONCE = 2  # pages; a command spends much of its time in starting
BLOCK = re.compile(
    r"(<!-- (?P<mark>not run|long): (?P<why>[^>]*) -->\n)?```(?P<kind>console|python|yaml|toml)\n"
    r"(# file: (?P<file>\S+)\n)?(?P<text>.*?)```",
    re.DOTALL,
)


def commands(text: str, quick: bool, out: TextIO) -> Iterator[tuple[str, str]]:
    """Yield `(shell or python or a file's name, code)`; a shell command goes on over lines that end in a backslash."""
    for block in BLOCK.finditer(text):
        if block["mark"] == "not run" or (block["mark"] == "long" and quick):
            print(f"not run ({block['why']}):\n{block['text']}", file=out, flush=True)
        elif block["file"]:
            yield block["file"], block["text"]
        elif block["kind"] == "python":
            yield "python", block["text"]
        elif block["kind"] == "console":
            joined = block["text"].replace("\\\n", " ")
            yield from (("shell", line[2:]) for line in joined.splitlines() if line.startswith("$ "))


def run(page: Path, folder: Path, quick: bool, out: TextIO) -> int:
    """Run a page's commands in a folder, with all that they say written to `out`; return how many there were."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
    }
    done = 0
    for kind, code in commands(page.read_text(), quick, out):
        print(f"\n=== {page.name}: {code.strip()}", file=out, flush=True)
        if kind not in ("shell", "python"):
            (folder / kind).write_text(code)
            continue
        began = time.monotonic()
        command = ["bash", "-euo", "pipefail", "-c", code] if kind == "shell" else [sys.executable, "-c", code]
        status = subprocess.run(command, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT).returncode
        print(f"=== exit code {status}, {time.monotonic() - began:.0f} s", file=out, flush=True)
        if status:
            sys.exit(f"{page.name}: this command failed: {code.strip()}")
        done += 1
    return done


def run_apart(pages: list[Path], quick: bool) -> int:
    """Run pages side by side, each in a copy of this folder of its own; return how many commands there were."""
    with tempfile.TemporaryDirectory() as parts, ThreadPoolExecutor(AT_ONCE) as pool:
        outs = [Path(parts, f"{page.stem}.txt") for page in pages]
        folders = [Path(parts, page.stem) for page in pages]
        for folder in folders:
            shutil.copytree(REPOSITORY, folder, symlinks=True, ignore=shutil.ignore_patterns(".venv", ".git"))

        def in_its_own(page: Path, folder: Path, out: Path) -> int | str:
            try:
                with out.open("w") as file:
                    return run(page, folder, quick, file)
            except SystemExit as failed:
                return str(failed)
            finally:
                print(out.read_text(), end="", flush=True)

        ends = list(pool.map(in_its_own, pages, folders, outs))
    if failed := [end for end in ends if isinstance(end, str)]:
        sys.exit("\n".join(failed))
    return sum(ends)


def main() -> None:
    quick = "--quick" in sys.argv[1:]
    pages = [Path(name) for name in sys.argv[1:] if name != "--quick"]
    if pages:
        done = sum(run(page, REPOSITORY, quick, sys.stdout) for page in pages)
    else:
        done = run(REPOSITORY / "README.md", REPOSITORY, quick, sys.stdout)
        done += run_apart(sorted((REPOSITORY / "docs").glob("*.md")), quick)
    if not done:
        sys.exit(f"{', '.join(map(str, pages))}: no command found")
    print(f"\n{done} passed, 0 failed")


if __name__ == "__main__":
    main()
