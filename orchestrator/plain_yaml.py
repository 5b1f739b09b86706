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
        The text is no YAML, has a tag that is no plain value's, or unfolds to more than `MOST_VALUES` values.
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


def _count(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """Return how many values a node unfolds to; each node is looked into once, however many aliases lead to it."""
    if depth > DEEPEST:  # an alias inside of what it stands for, too
        raise yaml.YAMLError(f"nested deeper than {DEEPEST} levels")
    if id(node) in known:
        return known[id(node)]
    parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else []
    parts = node.value if isinstance(node, yaml.SequenceNode) else parts
    total = 1 + sum(_count(part, known, depth + 1) for part in parts)
    if total > MOST_VALUES:
        raise yaml.YAMLError(f"more than {MOST_VALUES:,} values once its aliases (*) are unfolded")
    known[id(node)] = total
    return total
