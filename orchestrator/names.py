"""What people call things, as Ray, MLflow and file systems bear it: identifiers of any category, and filters.

People see the name itself, in tags, parameters, tables and pictures. What is made here stands where machines look: in
job IDs (names of folders, of Ray Train's runs and, by those, of Ray's metrics, which are ASCII) and in the names of
registered models, which MLflow refuses with a slash or a colon.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable

# Printable ASCII but for what leads out of a folder, and what MLflow takes in no name or no filter.
_PLAIN = re.compile(r"[ -&(-.0-9;-\[\]-~]+")
_CODED = re.compile(r".*~[0-9a-f]{10}")
LONGEST = 230  # of the 255 bytes of a file's name, so that `-final-seed99` and the like have room
REGISTERED = "msad-"  # what the names of registered models begin with
JOINT = " (joint)"  # behind an architecture's name, where one network is for several products
_STEM = 40


def identifier(name: str) -> str:
    """Return what stands for a name: the name itself where every system bears it, else ASCII with a digest of it.

    No two names have the same one: a digest, after a tilde, is of the whole name, and a name that looks like a coded
    one is coded too.
    """
    bearable = _PLAIN.fullmatch(name) and len(name) <= LONGEST and not _CODED.fullmatch(name)
    return name if bearable else _coded(name)


def study_id(study_key: str) -> str:
    """Return a study's key `CATEGORY/ARCHITECTURE` as it stands in job IDs, and so in the names of files and runs.

    An architecture named by a Python path has a colon, which some file systems and Ray's storage paths do not bear; one
    that is trained on several products has brackets in tables.
    """
    category, _, architecture = study_key.rpartition("/")
    architecture = architecture.replace(":", ".").replace(JOINT, ".joint")
    joined = "-".join(filter(None, (category and identifier(category), architecture)))
    return joined if len(joined) <= LONGEST else _coded(study_key)


def study_ids(study_keys: Iterable[str]) -> dict[str, str]:
    """Return the `study_id` of every study of a sweep, by its key, no two alike even where case is not told apart.

    That is so on many disks, and in some databases. Of names that differ in case alone the first keeps its own, one in
    small letters before others; the rest have a digest.
    """
    ids: dict[str, str] = {}
    taken: set[str] = set()
    for key in sorted(study_keys, key=lambda key: (key != key.lower(), key)):
        plain = study_id(key)
        ids[key] = plain if plain.casefold() not in taken else _coded(key)
        taken.add(ids[key].casefold())
    return ids


def final_id(study_id: str, index: int = 0) -> str:
    """Return the job ID of a study's final training; `index` counts its seeds, the first one's model is delivered."""
    return f"{study_id}-final" + (f"-seed{index}" if index else "")


def registered_name(category: str) -> str:
    """Return the name under which a category's models are registered."""
    return f"{REGISTERED}{identifier(category)}"


def search_filter(**values: str) -> str:
    """Return an MLflow filter by which every field has its value; `tags__NAME` is the tag `msad.NAME`.

    Raises
    ------
    ValueError
        A value has both kinds of quotes, or a backslash at its end: MLflow has no way to write it. No identifier has.
    """
    return " and ".join(f"{_field(name)} = {_quoted(value)}" for name, value in values.items())


def _field(name: str) -> str:
    tag = name.removeprefix("tags__")
    return name if tag == name else f"tags.`msad.{tag}`"


def _quoted(value: str) -> str:
    quote = '"' if "'" in value else "'"
    if quote in value or value.endswith("\\"):
        raise ValueError(f"{value!r}: MLflow cannot filter for both kinds of quotes, or a backslash at the end")
    return f"{quote}{value}{quote}"


def _coded(name: str) -> str:
    """Return the letters and digits that a name begins with, as far as ASCII has them, and a digest of all of it."""
    spelt = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    stem = re.sub(r"[^A-Za-z0-9.]+", "_", spelt).strip("._")[:_STEM] or "name"
    return f"{stem}~{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:10]}"
