"""How long a run is patient with a part that is lost or locked."""

from __future__ import annotations

import pytest

import vlmbatch.ray.troubles
from vlmbatch.config import Part
from vlmbatch.errors import EnginesLostError, OutputLockedError
from vlmbatch.ray.actors import Returned, Worker
from vlmbatch.ray.troubles import MAX_FAILURES, MAX_LOSSES, Troubles
from vlmbatch.remote.errors import RemoteFailedError

PART, OTHER = Part(1, 4), Part(2, 4)
LOCKED = OutputLockedError("part-00001-of-00004.parquet is being written by another run")


def test_a_part_that_makes_progress_may_be_lost_again_and_again() -> None:
    troubles = Troubles()
    for rows_done in range(10, 100, 10):
        troubles.lost(PART, rows_done, "a", "killed")
    assert troubles.may_begin(PART) and troubles.may_begin(OTHER)


def test_a_part_that_ends_every_engine_ends_the_run() -> None:
    troubles = Troubles()
    for _ in range(MAX_LOSSES):
        troubles.lost(PART, 10, "a", "killed")
        troubles.lost(OTHER, 10, "a", "killed")
    troubles.over(OTHER)
    troubles.lost(OTHER, 10, "b", "killed")
    with pytest.raises(EnginesLostError, match=r"part 1/4 was lost 4 times .* node b: SIGSEGV"):
        troubles.lost(PART, 10, "b", "SIGSEGV")


def test_locks_of_others_are_waited_for_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    troubles = Troubles()
    troubles.locked(PART, LOCKED)
    assert not troubles.may_begin(PART) and troubles.may_begin(OTHER)
    monkeypatch.setattr(vlmbatch.ray.troubles, "_LOCK_SECONDS", -1.0)
    with pytest.raises(OutputLockedError, match="part-00001"):
        troubles.locked(PART, LOCKED)


def test_a_lost_worker_may_hold_its_lock_as_long_as_it_will(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vlmbatch.ray.troubles, "_LOCK_SECONDS", -1.0)
    monkeypatch.setattr(vlmbatch.ray.troubles, "_RETRY_SECONDS", 0.0)
    troubles = Troubles()
    troubles.lost(PART, 0, "a", "unreachable")
    for _ in range(9):
        troubles.locked(PART, LOCKED)
    assert troubles.may_begin(PART)


def test_a_store_that_fails_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = RemoteFailedError("s3://b/part-00001-of-00004.parquet: SlowDown")
    troubles = Troubles()
    troubles.failed(PART, busy)
    assert not troubles.may_begin(PART) and troubles.may_begin(OTHER)
    monkeypatch.setattr(vlmbatch.ray.troubles, "_STORE_SECONDS", 0.0)
    for _ in range(MAX_FAILURES - 1):
        troubles.failed(PART, busy)
    assert troubles.may_begin(PART)
    with pytest.raises(RemoteFailedError, match="SlowDown"):
        troubles.failed(PART, busy)


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ("The actor died unexpectedly.\n\tclass_name: PartWorker", "The actor died unexpectedly."),
        (
            "The actor died because of an error in its creation task\nTraceback:\n  at a.py\n"
            "ModuleNotFoundError: No module named 'vlmbatch'",
            "ModuleNotFoundError: No module named 'vlmbatch'",
        ),
        ("", "RuntimeError"),
    ],
)
def test_a_cause_is_one_line(message: str, cause: str) -> None:
    assert Returned(Worker(None), "open", failure=RuntimeError(message)).cause == cause
