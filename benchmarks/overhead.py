"""What a sweep costs beyond its training: until the first step, per trial, in the driver, on resume, with many studies.

    python benchmarks/overhead.py                            all sections
    python benchmarks/overhead.py start direct               some: start, direct, train, driver, studies
    python benchmarks/overhead.py driver --trials 300

Every section runs real sweeps of the demo dataset in processes of their own with a clock at their landmarks
(`overhead_probe.py`). `start` goes until a worker has made its first optimiser step; `direct` and `train` say what a
trial takes beyond `msad.training.loop.fit`; `driver` has trials that report recorded figures instead of training,
and resumes that sweep with one trial more; `studies` are the 15 × 4 of a whole benchmark, recorded too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from msad.data_io.demo import make_demo

HERE = Path(__file__).parent
ONE = ["--categories", "brick", "--architectures", "baseline", "--concurrency", "1", "--pruner", "none"]
SMALL = ["--image-size", "64", "--epochs", "2", "--set", "model/base_width=8"]
FAMILIES = "baseline,multiscale,multiscale_segmenter,feature_pyramid"
PHASES = {
    "imports": ("process", "imports"),
    "checks of data, models, disk": ("checks-begin", "checks"),
    "MLflow: import, open the store": ("mlflow-begin", "mlflow"),
    "Ray: import, start": ("ray-begin", "ray"),
    "experiment, studies, Tune": ("ray", "suggested"),
    "the worker's process": ("suggested", "worker"),
    "its imports": ("worker", "worker-imports"),
    "data, model, first step": ("worker-imports", "step"),
}
Marks = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sections = {"start": start, "direct": direct, "train": train, "driver": driver, "studies": studies}
    parser.add_argument("sections", nargs="*", help=", ".join(sections))
    parser.add_argument("--repeats", type=int, default=3, help="of `start`")
    parser.add_argument("--trials", type=int, default=1000, help="of `driver`")
    options = parser.parse_args()
    if unknown := set(options.sections) - set(sections):
        parser.error(f"no section {', '.join(unknown)}; there are {', '.join(sections)}")
    versions = ", ".join(f"{name} {version(name)}" for name in ("ray", "optuna", "mlflow", "torch"))
    print(f"{platform.machine()}, {os.cpu_count()} cores, {memory_of_machine() / 2**20:.0f} GiB; "
          f"Python {platform.python_version()}, {versions}; {date.today()}")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        data = make_demo(Path(folder) / "demo")
        for name in options.sections or sections:
            print(f"\n{name} (load average {os.getloadavg()[0]:.1f})", flush=True)
            sections[name](Path(folder), data, options)


def start(folder: Path, data: Path, options: argparse.Namespace) -> None:
    """The repeats beside one another: the command, and the phases, of which some run at the same time."""
    words = [*ONE, *SMALL, "--trials", "1"]
    found = [first(sweep(folder, data, f"start{number}", words)) for number in range(options.repeats)]
    show("until the first step", [marks["step"]["time"] - marks["process"]["time"] for marks in found])
    for name, (begin, end) in PHASES.items():
        show(f"  {name}", [marks[end]["time"] - marks[begin]["time"] for marks in found])
    show("processor time till then, of the whole machine", [
        marks["step"]["processor_of_all"] - marks["process"]["processor_of_all"] for marks in found])  # fmt: skip
    show("processor time till then, of the worker", [marks["step"]["processor"] for marks in found])
    show("processor time till then, of the driver", [marks["suggested"]["processor"] for marks in found])


def direct(folder: Path, data: Path, options: argparse.Namespace) -> None:
    per_trial(folder, data, "direct", 10)


def train(folder: Path, data: Path, options: argparse.Namespace) -> None:
    per_trial(folder, data, "train", 5)


def per_trial(folder: Path, data: Path, executor: str, trials: int) -> None:
    words = [*ONE, *SMALL, "--trials", str(trials), "--executor", executor]
    marks = sweep(folder, data, executor, words)
    begun = [mark for mark in marks if mark["name"] in ("suggested", "searched")]
    fits = [mark for mark in marks if mark["name"] == "fit"]
    show("training", [fit["seconds"] for fit in fits])
    for clock, own, words in (("time", "seconds", "beyond it"), ("processor_of_all", "processor_seconds", "processor")):
        whole = [after[clock] - before[clock] for before, after in itertools.pairwise(begun)]
        extra = [seconds - fit[own] for seconds, fit in zip(whole, fits, strict=True)]
        show(f"{words}, first trial", extra[:1])
        show(f"{words}, each later trial", extra[1:])


def driver(folder: Path, data: Path, options: argparse.Namespace) -> None:
    words = [*ONE, *SMALL, "--trials", str(options.trials)]
    begun = [mark for mark in sweep(folder, data, "driver", words, "recorded") if mark["name"] == "suggested"]
    each = max(1, options.trials // 5)
    for low in range(0, len(begun) - 1, each):
        part = begun[low : low + each + 1]
        wall, processor = (1000 * (part[-1][name] - part[0][name]) / (len(part) - 1) for name in ("time", "processor"))
        print(f"trials from {low:4}: {wall:5.0f} ms each, the driver's processor {processor:5.0f} ms, "
              f"its memory {part[-1]['memory'] >> 10} MiB")  # fmt: skip
    kept = folder / "sweeps/driver/sweep.yaml"
    kept.write_text(kept.read_text().replace(f"trials: {options.trials}\n", f"trials: {options.trials + 1}\n"))
    marks = first(sweep(folder, data, "driver", None, "recorded"))
    for name, landmark in (("the missing trial begins", "suggested"), ("all is reported in MLflow", "end")):
        show(f"resume: until {name}", [marks[landmark]["time"] - marks["process"]["time"]])


def studies(folder: Path, data: Path, options: argparse.Namespace) -> None:
    root = folder / "fifteen"
    root.mkdir()
    for category in sorted(path for path in data.iterdir() if path.is_dir()):
        for copy in "abc":
            (root / f"{category.name}-{copy}").symlink_to(category)
    words = ["--architectures", FAMILIES, "--trials", "4", "--epochs", "2", "--image-size", "64"]
    marks = sweep(folder, root, "studies", words, "recorded")
    begun = [mark for mark in marks if mark["name"] == "suggested"]
    show("until the first trial begins", [begun[0]["time"] - first(marks)["process"]["time"]])
    given, widest = Counter(dict.fromkeys((mark["study"] for mark in begun), 0)), 0
    for mark in begun:
        given[mark["study"]] += 1
        widest = max(widest, max(given.values()) - min(given.values()))
    print(f"{len(given)} studies, {given.total()} trials; no study was ever ahead of another by more than {widest}")
    most = max(mark["memory"] for mark in marks if mark["name"] in ("suggested", "end"))
    print(f"the driver's memory: {most >> 10} MiB, {100 * most / memory_of_machine():.1f} % of the machine's")
    show("until all is reported in MLflow", [first(marks)["end"]["time"] - first(marks)["process"]["time"]])


def sweep(folder: Path, data: Path, name: str, words: Sequence[str] | None, jobs: str = "trained") -> Marks:
    """Run a sweep, or resume it where there are no words, and return its landmarks in order."""
    file = folder / f"{name}.jsonl"
    file.unlink(missing_ok=True)
    command = ["search", "--resume", name] if words is None else ["search", "--dataset", str(data), *words]
    environment = {
        **os.environ,
        "OVERHEAD_MARKS": str(file),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH")])),
    }
    named = [] if words is None else ["--name", name]
    done = subprocess.run(
        [sys.executable, str(HERE / "overhead_probe.py"), jobs, *command, *named],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"msad ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return sorted(map(json.loads, file.read_text().splitlines()), key=lambda mark: mark["time"])


def first(marks: Marks) -> dict[str, dict[str, Any]]:
    """Return the first landmark of each name."""
    return {mark["name"]: mark for mark in reversed(marks)}


def show(name: str, seconds: Sequence[float]) -> None:
    each = f"  ({', '.join(f'{value:.1f}' for value in sorted(seconds))})" if len(seconds) > 1 else ""
    print(f"{name:44} {statistics.median(seconds):6.2f} s{each}", flush=True)


def memory_of_machine() -> int:
    """Return the machine's memory in KiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 10


if __name__ == "__main__":
    main()
