"""YAML from others: what unfolds to gigabytes or makes objects is refused, and at once."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from msad.errors import ConfigError
from msad.search.config import MOST_BYTES, load
from msad.search.plain_yaml import plain_yaml

LAUGHS = "a0: &a0 [ha, ha]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 30))
TAGS = (
    "!!python/object/apply:os.system ['touch {file}']",
    "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{file}']]",
    "!!python/name:os.system",
    "!!python/module:os",
)

LOAD_WITHIN_LIMITS = """
import resource, sys
from pathlib import Path
from msad.search.config import load
from msad.errors import ConfigError
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20),) * 2)
for name in sys.argv[1:]:
    try:
        load(Path(name))
    except ConfigError as error:
        print(error, end="\\0")
"""


def test_plain_values_and_aliases_are_read_as_ever():
    text = "wide: &wide {model/base_width: 64}\nparameters: *wide\nother: {<<: *wide, epochs: 3}\n---\nstudies: []\n"
    assert plain_yaml(text) == list(yaml.safe_load_all(text))
    assert plain_yaml("") == []


def test_bombs_are_refused_in_bounded_time_and_memory(tmp_path):
    bombs = {
        "laughs": (LAUGHS, "more than 10,000 values"),
        "merges": (MERGES, "more than 10,000 values"),
        "circle": ("a: &a [*a]", "nested deeper than 50 levels"),
        "lists": ("a: " + "[" * 100_000, "nested deeper than 50 levels"),
        "maps": ("a: " + "{a: " * 200 + "1" + "}" * 200, "nested deeper than 50 levels"),
        "number": ("a: " + "9" * 10_000, "not valid YAML"),
        "date": ("a: 2026-02-31", "not valid YAML"),
        "long": ("a: 1\n" * (MOST_BYTES // 4), "larger than"),
    }
    for name, (text, _) in bombs.items():
        (tmp_path / name).write_text(text)
    # Its own process: there memory and time can be limited, and it shows that no traceback comes of any of them.
    done = subprocess.run(
        [sys.executable, "-c", LOAD_WITHIN_LIMITS, *(tmp_path / name for name in bombs)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for told, (name, (_, reason)) in zip(done.stdout.split("\0")[:-1], bombs.items(), strict=True):
        assert told.startswith(f"{tmp_path / name}: ") and reason in told and len(told) < 1000


@pytest.mark.parametrize("tag", TAGS)
def test_tags_that_make_objects_run_nothing(tmp_path, tag):
    (tmp_path / "sweep.yaml").write_text("name: " + tag.format(file=tmp_path / "touched"))
    with pytest.raises(ConfigError, match=r"sweep\.yaml: not valid YAML: could not determine a constructor"):
        load(tmp_path / "sweep.yaml")
    assert not (tmp_path / "touched").exists()


def test_folder_or_pipe_as_a_configuration_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not a file"):
        load(tmp_path)
