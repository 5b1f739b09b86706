"""The errors a user can cause or repair.

`data_io` and `models` stand below this package and know nothing of it, so they raise their own `DataError` and
`ModelError`; `USER_ERRORS` is what a caller (the command line, above all) catches to get all of them.
"""

from __future__ import annotations

import errno

from msad.data_io.errors import DataError
from msad.models.errors import ModelError


class MsadError(Exception):
    """Base of every error this package raises on purpose; its text says what is wrong and what to do."""


class ConfigError(MsadError):
    """A configuration or an option is wrong: found before anything is started."""


class ResourceError(MsadError):
    """The cluster or the disk has less than was asked for."""


class DiskFull(ResourceError):
    """There is no space left, or the user's share of it is used up: nobody's fault who writes, and soon mended."""


class TrackingError(MsadError):
    """The MLflow server or store cannot be reached, or does not hold what was asked for."""


class BundleError(MsadError):
    """A bundle is incomplete, damaged, or of a newer format."""


class ExportError(MsadError):
    """A model cannot be exported, or the exported graph does not agree with it."""


class TrainingError(MsadError):
    """A training job ended without a model; the text is the reason recorded for the trial."""


class Diverged(TrainingError):
    """A training job's loss or maps are not finite: its configuration does not train."""


class OutOfMemory(TrainingError):
    """A training job's device, or its share of it, is too small."""


class TooSlow(TrainingError):
    """A network takes longer for an image than the budget allows.

    Parameters
    ----------
    latency, budget
        In ms.
    """

    def __init__(self, latency: float, budget: float) -> None:
        super().__init__(latency, budget)  # other processes make it again of these
        self.latency, self.budget = latency, budget

    def __str__(self) -> str:
        return f"too slow: an image takes {self.latency:.3g} ms, the budget is {self.budget:.3g}"


class Interrupted(MsadError):
    """A sweep was stopped from outside; the text says how to go on."""


def first_line(error: BaseException) -> str:
    """Return what an error says in its first line; its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def full_disk(error: BaseException | None) -> OSError | DiskFull | None:
    """Return the error of a full disk that an error is, or comes from, also through Ray; None where there is none."""
    if error is None:
        return None
    if isinstance(error, DiskFull) or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
        return error
    # Ray's errors of a task, of a training function, of a controller and of a group of workers, then Python's own.
    inner = [getattr(error, name, None) for name in ("cause", "_base_exc", "controller_failure", "__cause__")]
    inner += getattr(error, "worker_failures", {}).values()
    found = (full_disk(part) for part in inner if isinstance(part, BaseException) and part is not error)
    return next((part for part in found if part), None)


def crash_reason(error: str) -> str:
    """Return what is worth telling of Ray's account of a crash; of several, as Tune keeps them, of the last.

    Words for people, by Ray's own: it has one type for the death of an actor, whatever that died of. Nothing is decided
    by them.
    """
    error = error.rpartition("Failure # ")[2]
    if "running low on memory" in error:
        return "its node was short of memory, and Ray ended it: lower batch_size, image_size or --concurrency"
    if "Worker unexpectedly exits" in error:
        return "its process was killed, as the system does where memory is short, or ended by a fault in native code"
    if "node has died" in error or "temporarily unavailable" in error:
        return "its node was lost"
    lines = error.strip().splitlines()
    return lines[-1] if lines else "no message"


USER_ERRORS = (MsadError, DataError, ModelError)
