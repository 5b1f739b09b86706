"""Where a command is to write: refused at the start, made in the end."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from msad.terminal import cli
from msad.terminal.outputs import output_file, output_folder, write_file

OPTIONS = [
    ("search", "--json", output_file),
    ("train", "--json", output_file),
    ("compare", "--json", output_file),
    ("compare", "--csv", output_file),
    ("compare", "--html", output_file),
    ("pull", "--to", output_folder),
    ("export", "--to", output_file),
    ("predict", "--out", output_folder),
    ("evaluate", "--out", output_folder),
]


@pytest.mark.parametrize(("command", "name", "check"), OPTIONS)
def test_every_output_is_checked_when_the_command_is_read(command, name, check):
    [option] = [one for one in cli.msad.commands[command].params if name in one.opts]
    assert option.callback is check


def test_file_in_a_folder_that_is_missing_is_made_and_nothing_before(tmp_path):
    file = tmp_path / "a" / "b" / "table.json"
    assert output_file(None, None, file) == file and output_file(None, None, "-") == "-"
    assert not list(tmp_path.iterdir())
    write_file(file, "Löt \udcff")
    assert file.read_bytes() == "Löt ".encode() + b"\xff"


def test_output_that_cannot_be_is_refused_with_its_path(tmp_path):
    (tmp_path / "file").touch()
    for check, place, words in (
        (output_file, tmp_path, "is a folder"),
        (output_file, tmp_path / "file" / "x.json", "is a file"),
        (output_folder, tmp_path / "file", "is a file: name a folder"),
        (output_folder, tmp_path / "file" / "x", "is a file"),
    ):
        with pytest.raises(click.BadParameter, match=words) as told:
            check(None, None, place)
        assert str(place) in str(told.value)


def test_report_of_a_check_is_written_into_a_folder_that_was_missing(demo, tmp_path):
    file = tmp_path / "new" / "report.json"
    done = CliRunner().invoke(cli.msad, ["data", "check", str(demo), "--json", str(file)])
    assert done.exit_code == 0 and json.loads(file.read_text())["ok"]
    assert CliRunner().invoke(cli.msad, ["data", "check", str(demo), "--json", str(Path(tmp_path))]).exit_code == 2
