"""What MLflow is to show of a trial, a study or the sweep, and what tells one state of it from another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msad.tracking.ui.pages import Pages
from msad.workspace import JobDirectory

ORIGIN = ("msad.identity", "msad.code_version")
"""Tags that say what a model was trained on and by which code: they belong to a run, not to the sweep as it is now."""

JOINT_TAG, SEARCH_TAG = "msad.joint", "msad.search"
"""Of runs that belong to one network for several products: their names, in JSON, and the key of its study."""

TEST_TABLES = ("scores.csv", "regions.csv", "per_defect_type.csv")
OTHER_FILES = ("search.json", "selection.json", "report.html")
Note = Callable[[Pages], str]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What MLflow is to show of a trial, a study or the sweep; a later record of the same ID replaces an earlier one.

    `kind` is `trial`, `study`, `final`, one of several seeds, `sweep`, or `joint`, the study of several products, each
    of which has a `study` that shows what it makes of the winner.
    `status` is `running`, `complete`, `pruned`, `too_slow` or `failed`, these two with a `reason`. `directory` is the
    job's folder: its progress becomes the metrics per epoch, its bundle and pictures the artifacts. `parent` and `best`
    are record IDs: the study a trial belongs to, the trial a study chose. `starred` says whether a study is the best of
    its category (tag `msad.best`). `register_as` is the category to register the model for.
    `note` is Markdown, made when it is delivered, with links to other runs; `experiment_note` the experiment's own.
    """

    record_id: str
    kind: str
    title: str
    status: str
    directory: JobDirectory
    parent: str | None = None
    best: str | None = None
    starred: bool | None = None
    reason: str | None = None
    note: Note | None = None
    experiment_note: Note | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    register_as: str | None = None

    @property
    def ended(self) -> bool:
        return self.status != "running"

    def shown_params(self) -> dict[str, str]:
        """Return the parameters as MLflow keeps them."""
        return {name: str(value)[:5000] for name, value in self.params.items()}

    def origin(self) -> dict[str, str]:
        """Return the tags `ORIGIN` as far as they are certain.

        Of a model they are what its bundle says, of a job that runs what the sweep says now. Of one that has ended
        without a model nothing is: it may have run before the images or the code were changed.
        """
        if not self.ended:
            return {name: self.tags[name] for name in ORIGIN if name in self.tags}
        try:
            provenance = json.loads((self.directory.bundle / "bundle.json").read_text())["provenance"]
        except (OSError, ValueError, LookupError, TypeError):  # no bundle, or one whose delivery will say what is wrong
            return {}
        known = {
            "msad.identity": (provenance.get("identity") or {}).get("digest"),
            "msad.code_version": provenance.get("code_version"),
        }
        return {name: value for name, value in known.items() if value}

    def files(self) -> dict[str, Path]:
        """Return the pictures, tables and notes to upload by their artifact paths; the bundle goes separately."""
        path = self.directory.path
        found = {f"pictures/{file.name}": file for file in sorted(path.glob("pictures/*")) if file.is_file()}
        found |= {name: path / name for name in OTHER_FILES}
        found |= {f"test/{name}": path / f"test_{name}" for name in TEST_TABLES}
        return {name: file for name, file in found.items() if file.is_file()}

    def content(self) -> str:
        """Return a digest of all that MLflow gets of it: status, parameters, figures of every epoch, and files.

        Name, description and tags are left out: they may change for reasons of other runs.
        """
        files = {**self.files(), "bundle": self.directory.bundle / "bundle.json"}
        values = {
            "status": self.status,
            "params": self.shown_params(),
            "metrics": dict(self.metrics),
            "progress": self.directory.progress(),
            "files": {
                name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items() if file.is_file()
            },
            "register_as": self.register_as,
        }
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
