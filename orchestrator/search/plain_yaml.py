"""YAML as a configuration needs it: plain values, no tags that make objects, no few lines that unfold to gigabytes."""

from __future__ import annotations

from typing import Any

import yaml

MOST_VALUES, DEEPEST = 10_000, 50


def plain_yaml(text: str) -> list[Any]:
    """Return the documents in a text; aliases are allowed as long as what they unfold to stays small.

    Raises
    ------
    yaml.YAMLError
        The text is no YAML, has a tag that is no plain value's, names a setting twice, or unfolds to more than
        `MOST_VALUES` values.
    ValueError
        A date or a number is none.
    """
    loader = yaml.SafeLoader(text)
    try:
        documents = []
        while loader.check_node():
            node = loader.get_node()
            _count(node, {}, 1)
            documents.append(loader.construct_document(node))
        return documents
    except RecursionError:
        raise yaml.YAMLError(f"nested deeper than {DEEPEST} levels") from None
    finally:
        loader.dispose()


def as_written(text: str) -> Any:
    """Return the first document of a text that `plain_yaml` has read, every value in it as the text that it is."""
    return next(yaml.load_all(text, yaml.BaseLoader), None)


def _count(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """Return how many values a node unfolds to; each node is looked into once, however many aliases lead to it."""
    if depth > DEEPEST:  # an alias inside of what it stands for, too
        raise yaml.YAMLError(f"nested deeper than {DEEPEST} levels")
    if id(node) in known:
        return known[id(node)]
    if isinstance(node, yaml.MappingNode):
        _refuse_twice(node)
    parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else []
    parts = node.value if isinstance(node, yaml.SequenceNode) else parts
    total = 1 + sum(_count(part, known, depth + 1) for part in parts)
    if total > MOST_VALUES:
        raise yaml.YAMLError(f"more than {MOST_VALUES:,} values once its aliases (*) are unfolded")
    known[id(node)] = total
    return total


def _refuse_twice(node: yaml.MappingNode) -> None:
    """Refuse a mapping that has a key twice: YAML takes the last one, and drops what was given first."""
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            line = key.start_mark.line + 1
            if key.value in lines:
                raise yaml.YAMLError(f"{key.value!r} stands there twice, in lines {lines[key.value]} and {line}")
            lines[key.value] = line
