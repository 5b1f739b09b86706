"""What the pages say about the program is what the program says: knobs, ranges, defaults, names, links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution

from msad import search_spaces
from msad.search.config import make_config
from msad.search.study import default_parameters

REPOSITORY = Path(__file__).parent.parent
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
SHARED = ("baseline", "multiscale", "multiscale_segmenter")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def tables() -> dict[tuple[str, ...], dict[str, tuple[str, str]]]:
    """Return per section of the page its architectures, and by parameter the default and the range."""
    page = (REPOSITORY / "docs" / "architectures.md").read_text()
    found = {}
    for section in re.split(r"^### ", page, flags=re.MULTILINE)[1:]:
        title, _, text = section.partition("\n")
        rows = re.findall(r"^\| `([a-z_/0-9]+)` \| ([^|]+) \| ([^|]+) \| [^|]+ \|$", text, re.MULTILINE)
        found[tuple(re.findall(r"`(\w+)`", title))] = {path: (default, span) for path, default, span in rows}
    return found


def written(value: object) -> str:
    return "null" if value is None else value if isinstance(value, str) else f"{value:g}"


def span(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(map(written, distribution.choices))
    return f"{distribution.low:g} – {distribution.high:g}" + (", log" if distribution.log else "")


@pytest.mark.parametrize("name", search_spaces.architectures())
def test_page_of_architectures_names_every_knob_with_its_default_and_range(name):
    space = search_spaces.space(name)
    job = make_config({"name": "a", "dataset": "d", "architectures": [name]}).job("any", name)
    defaults = default_parameters(job, space)
    expected = {path: (written(defaults[path]), span(space[path])) for path in space}
    shown = {}
    for names, rows in tables().items():
        shown |= rows if name in names else {}
    assert shown == expected


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for target in LINK.findall(page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{page.name}: {target}"


def test_every_page_is_in_the_index():
    index = (REPOSITORY / "docs" / "README.md").read_text()
    assert {page.name for page in PAGES if page.parent.name == "docs"} - {"README.md"} <= set(LINK.findall(index))


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/how-it-works.md"])
def test_every_file_that_is_named_is_there(page):
    folders = ("orchestrator", "models", "data_io", "search_spaces", "tests", "benchmarks")
    files = [f"/{file.relative_to(REPOSITORY)}" for folder in folders for file in (REPOSITORY / folder).rglob("*.py")]
    named = set(re.findall(r"`([\w/]+\.py)\b", (REPOSITORY / page).read_text()))
    named = {name for name in named if not name.endswith("/NAME.py")}  # to be written
    assert named and not {name for name in named if not any(file.endswith(f"/{name}") for file in files)}
