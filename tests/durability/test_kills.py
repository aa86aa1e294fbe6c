"""A run that is killed, anywhere and again and again, is finished by running it again.

Every attempt is a process that runs the whole command. ``ResumableRun`` checks each: no row that
was acknowledged is computed again, and no finished file changes. ``write_behind``: what was not
synced dies with the process, as in a power cut. The suite has a sample of the kills, ``make soak``
the rest.
"""

from __future__ import annotations

import itertools
import random
import signal
import time

import pytest
from resumable_runs import WITH_ERRORS, read_rows, write_manifest, write_questions

from vlmbatch.durable.crash_points import CRASH_POINTS

SHARD_ROWS = 64
STEP_SECONDS = 0.003  # of some forty steps
OF_OUTPUT = [point for point in CRASH_POINTS if point.startswith("output")]
ONCE_A_RUN = {
    None: {"journal.segment_created", "journal.tail_cut", *OF_OUTPUT},
    SHARD_ROWS: {"journal.segment_created", "journal.tail_cut"},
}
KINDS = list(itertools.product([None, SHARD_ROWS], [False, True]))
in_soak = pytest.mark.soak


@pytest.mark.parametrize("kinds", [KINDS, *(pytest.param([kind], marks=in_soak) for kind in KINDS)])
def test_at_random_moments(new_run, expected, kinds):
    """Anywhere in a run's time or among its rows, and more often at its start and its end.

    ``kinds``: (rows of a shard or None, write behind) of the runs, one after another.
    """
    hows = [
        {"shard_rows": shard_rows, "write_behind": write_behind, "step_seconds": STEP_SECONDS}
        for shard_rows, write_behind in kinds
    ]
    started = time.monotonic()
    new_run(**hows[0]).finish(expected)
    seconds = time.monotonic() - started
    rng = random.Random(f"{kinds}")
    under_way = landed = 0
    for how in itertools.cycle(hows):
        if landed >= 8:
            break
        run = new_run(**how)
        for moment in rng.sample(["any", "any", "start", "row", "row", "end"], 6):
            if moment == "row":
                row = rng.randrange(len(expected))
                status = run.attempt(kill_at=row, kill_after=rng.uniform(0, 0.005))
            else:
                low, high = {"any": (0, 1), "start": (0, 0.2), "end": (0.8, 1.2)}[moment]
                status = run.attempt(kill_after=seconds * rng.uniform(low, high))
            if status != -signal.SIGKILL:
                assert status == WITH_ERRORS
                break
        run.finish(expected)
        landed += len(run.killed)
        under_way += sum(0 < acknowledged < len(expected) for acknowledged in run.killed)
    assert under_way > landed / 4


@pytest.mark.parametrize(
    ("shard_rows", "points", "visit"),
    [
        (None, CRASH_POINTS, 1),
        (SHARD_ROWS, OF_OUTPUT, 1),
        pytest.param(SHARD_ROWS, CRASH_POINTS, 1, marks=in_soak),
        pytest.param(None, CRASH_POINTS, 2, marks=in_soak),
        pytest.param(SHARD_ROWS, CRASH_POINTS, 2, marks=in_soak),
    ],
)
def test_at_every_crash_point(new_run, expected, shard_rows, points, visit):
    """After a first crash that leaves a journal, and then as often as the point is reached."""
    passed_by = set()
    landed = 0
    for number, point in enumerate(points):
        run = new_run(shard_rows=shard_rows, write_behind=number % 2 == 0)
        if not point.startswith("run_record"):
            assert run.attempt(crash_at="journal.acknowledged:3") == -signal.SIGKILL
        statuses = [run.attempt(crash_at=f"{point}:{visit}")]
        while statuses[-1] == -signal.SIGKILL and len(statuses) < 2:
            statuses.append(run.attempt(crash_at=f"{point}:{visit}"))
        if statuses[0] == WITH_ERRORS:
            passed_by.add(point)
        run.finish(expected)
        landed += len(run.killed)
    assert passed_by == (set() if visit == 1 else ONCE_A_RUN[shard_rows])
    assert landed >= 2 * (len(points) - len(passed_by))


@pytest.mark.parametrize("mutation", [None, "acknowledge first", "no fsync"])
def test_the_checks_see_a_journal_that_is_wrong(new_run, expected, mutation):
    run = new_run(write_behind=True, mutation=mutation, step_seconds=STEP_SECONDS)
    assert run.attempt(kill_at=200) == -signal.SIGKILL
    if mutation is None:
        run.finish(expected)
    else:
        with pytest.raises(AssertionError, match="acknowledged rows were computed again"):
            run.finish(expected)


@pytest.mark.soak
@pytest.mark.parametrize("questions", [None, 200])
def test_half_of_thousands_of_rows(new_run, tmp_path, questions):
    """With groups as they are: few rows are computed twice, and none that was acknowledged.

    Also where a row of every image is answered before most rows at the head of the manifest.
    """
    num_rows = 4400
    if questions:
        manifest = write_questions(tmp_path / "manifest.jsonl", num_rows // questions, questions)
    else:
        manifest = write_manifest(tmp_path / "manifest.jsonl", num_rows)
    how = {"group_rows": None, "max_num_seqs": 256, "write_behind": True}
    run, undisturbed = (new_run(manifest, **how, spilling=bool(questions)) for _ in range(2))
    assert undisturbed.attempt() == WITH_ERRORS
    command = run.start()
    command.wait_until(lambda: len(command.computed) >= num_rows // 2)
    command.send_signal(signal.SIGKILL)
    assert command.wait() == -signal.SIGKILL
    computed, acknowledged = set(command.computed), set(command.acknowledged)
    assert num_rows // 2 <= len(computed) < num_rows - 1024 and len(acknowledged) > num_rows // 3
    again = run.start()
    assert again.wait() == WITH_ERRORS
    assert len(computed.intersection(again.computed)) <= 1024
    assert not acknowledged.intersection(again.computed)
    run.check_finished(read_rows(undisturbed.output))
