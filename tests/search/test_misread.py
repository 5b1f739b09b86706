"""Names without quotes and lists without brackets: the message says what to add, for all of them at once."""

from __future__ import annotations

import pytest

from msad.errors import ConfigError
from msad.search.config import load, make_config


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("categories: [01, 02]", ['01 is a number to YAML: put it in quotes, "01"', "02 is a number", '"02"']),
        ("name: 2024-11-29", ['2024-11-29 is a date to YAML: put it in quotes, name: "2024-11-29"']),
        ("name: 12:30:45", ['name: "12:30:45"']),
        ("dataset: 1_000", ['dataset: "1_000"']),
        ("categories: [on, gear]", ["on is yes or no", '"on"']),
        ("categories:\n- rev: B", ['put it in quotes, "rev: B"']),
        ("categories:\n-\n", ["categories: an empty item"]),
        ("categories: gear", ["put it in brackets, [gear]"]),
        ("categories: 2024-11-29", ['["2024-11-29"]']),
        ("architectures: baseline, multiscale", ["[baseline, multiscale]"]),
        ("categories: {bolt, nut}", ["[bolt, nut]"]),
        ("categories:", ["leave the line away"]),
        ("name: [first]", ["name: first"]),
        ("name: 1\ncategories: 2", ['name: "1"', '["2"]']),
        ("trials: 3\nname: a\ntrials: 5", ["'trials' stands there twice, in lines 1 and 3"]),
    ],
)
def test_value_that_yaml_reads_as_something_else_is_named_with_what_is_missing(tmp_path, text, advice):
    file = tmp_path / "sweep.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(file)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{file}: ") for line in lines)
    assert all(words in str(caught.value) for words in advice)


@pytest.mark.parametrize(
    "name", ["01", "2024-11-29", "no", "~", "12:30:45", "Löt", "M4,5 bolt", "rev: B", "[x]", "\U0001f529"]
)
def test_names_in_quotes_come_back_as_they_were_and_so_does_the_file_of_a_sweep(tmp_path, name):
    (tmp_path / "sweep.yaml").write_text(f'dataset: "{name}"\ncategories: ["{name}"]\nname: "2024"\n', encoding="utf-8")
    config = make_config(load(tmp_path / "sweep.yaml"))
    assert config.categories == (name,) and str(config.dataset) == name and config.name == "2024"
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert make_config(load(tmp_path / "again.yaml")) == config
