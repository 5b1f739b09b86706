"""How a sweep ended: what its command returns, prints and exits with."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Outcome:
    """How a sweep ended.

    Why each study that has no winner has none, why each winner that has no test figures has none, how many runs MLflow
    did not get, why the sweep has no report page where it has none, and the command that makes up for it.
    `champions` says by category what came of meeting the champion, where that did not go without saying.
    """

    name: str
    tracking_uri: str
    failed_studies: dict[str, str]
    undelivered: int
    unreported: str | None
    unmeasured: dict[str, str]
    resume: str
    champions: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not (self.failed_studies or self.undelivered or self.unreported or self.unmeasured)
