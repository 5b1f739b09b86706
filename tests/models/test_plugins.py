"""Names of code from outside: what they lead to, and what each wrong one is answered with."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

import pytest

from msad.models.errors import ModelError
from msad.models.plugins import described, is_python_path, load_python_path, named_entry_points


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """A function that writes a module to a folder on the import path."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)

    return write


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("my_detector:MyDetector", True),
        ("a.b.c:D", True),
        ("baseline", False),
        ("detector.py:MyDetector", False),
        ("folder/detector:MyDetector", False),
        ("a.b:", False),
        (":D", False),
        ("a:b:c", False),
    ],
)
def test_is_python_path(name, is_one):
    assert is_python_path(name) is is_one


def test_load_python_path_returns_the_object(modules):
    modules("numbers_of_mine", "FOUR = 4")
    assert load_python_path("numbers_of_mine:FOUR") == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("there/is/one.py:Mine", r"another machine may not have that file; run msad in there/is and give one:NAME"),
        ("one.py", r"run msad in \. and give one:NAME"),
        ("not_there_at_all:Mine", r"no module 'not_there_at_all': run msad in the folder that holds it"),
        ("json.not_there:Mine", r"no module 'json.not_there'"),
        ("needs_more:Mine", r"needs_more needs the module 'not_there_at_all', which is not installed"),
        ("half_written:Mine", r"importing half_written failed: SyntaxError: .*half_written.py, line 1"),
        ("raises:Mine", r"importing raises failed: ZeroDivisionError: division by zero \(.*raises.py, line 2\)"),
        ("misspelt:Mein", r"misspelt has no 'Mein'; did you mean 'Mine'\?"),
    ],
)
def test_load_python_path_wrong_name_says_what_to_do(modules, name, message):
    modules("needs_more", "import not_there_at_all")
    modules("half_written", "def f(:")
    modules("raises", "\n1 / 0")
    modules("misspelt", "class Mine: pass\nmeans = 3")
    with pytest.raises(ModelError, match=message):
        load_python_path(name, wanted=type)


def test_named_entry_points_finds_what_packages_offer():
    (point,) = (point for point in named_entry_points("console_scripts")["msad"])
    assert point.value == "msad.terminal.cli:main"
    assert described(point).startswith("msad ") and described(point).endswith(" (msad.terminal.cli:main)")
    assert set(named_entry_points("console_scripts")) == entry_points(group="console_scripts").names
