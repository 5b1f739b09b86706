"""The files that a study leaves beside its winner: `search.json` with its pictures, and `selection.json`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from msad.search.selection import FIGURES, report_selection
from msad.search.study import Study
from msad.search.study_record import describe_search
from msad.workspace import Workspace


def write_search(study: Study, workspace: Workspace) -> None:
    """Write a study's `search.json` and draw its pictures, where they are not those of its trials as they stand."""
    final = workspace.final(study.id)
    kept = final.read("search")
    found = describe_search(study, trial_tests(study, workspace), kept)
    if kept != found:
        # Here, because matplotlib takes seconds to import, which the start of a sweep has not.
        from msad.pictures.study_pictures import save_study_pictures

        save_study_pictures(found, final.path / "pictures")
        final.write("search", found)


def write_selection(study: Study, workspace: Workspace) -> bool:
    """Write a finished study's `selection.json` from what its trials' tests have left; say whether there was any."""
    tests = trial_tests(study, workspace)
    rows = [
        {"job_id": record.job_id, "validation": record.value, **{name: test.get(name, math.nan) for name in FIGURES}}
        for record in study.records()
        if record.state == "complete" and (test := tests.get(record.job_id))
    ]
    if rows:
        reports = {name: dataclasses.asdict(report_selection(pd.DataFrame(rows), name)) for name in FIGURES}
        selection = {**_without_nan(reports), "trials": [_without_nan(row) for row in rows]}
        workspace.final(study.id).write("selection", selection)
    return bool(rows)


def trial_tests(study: Study, workspace: Workspace) -> dict[str, dict[str, float]]:
    """Return the test figures of trials that were measured for the report, by job ID."""
    found = {record.job_id: workspace.job(record.job_id).read("test_report") for record in study.records()}
    return {job_id: test for job_id, test in found.items() if test}


def _without_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as JSON has them: null for NaN, also one level down."""
    return {
        key: _without_nan(value) if isinstance(value, Mapping) else None if value != value else value
        for key, value in values.items()
    }
