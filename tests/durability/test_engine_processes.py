"""Runs whose engines are processes of their own, which are killed with and without the run."""

from __future__ import annotations

import json
import os
import random
import signal
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from fast_command import Command
from resumable_runs import WITH_ERRORS, ResumableRun, read_rows, write_questions
from worker_processes import ENGINE, IMAGE_WORKER, wait_until, worker_pids

SLOW = {"step_seconds": 0.01}


def engines_of(command: Command) -> set[int]:
    return worker_pids(command.pid, ENGINE)


def are_gone(pids: set[int]) -> bool:
    return not any(Path("/proc", str(pid)).exists() for pid in pids)


def check_memory(pids: set[int]) -> None:
    """What they share has no name that could outlive them."""
    for pid in pids:
        maps = Path("/proc", str(pid), "maps").read_text()
        assert "/memfd:vlmbatch-images" in maps and "/dev/shm" not in maps


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("questions") / "manifest.jsonl", 60, 5)


@pytest.fixture(scope="module")
def answers(commands, tmp_path_factory, questions, model):
    """The rows of a run with one engine, which is in the process of the command."""
    run = ResumableRun(commands, tmp_path_factory.mktemp("undisturbed"), questions, model)
    assert run.attempt() == WITH_ERRORS
    return read_rows(run.output)


def test_rows_are_those_of_one_engine(new_run, questions, answers):
    """Whichever engines a run that is resumed has."""
    run = new_run(questions)
    assert run.attempt("--replicas", 2, **SLOW, kill_at=100) == -signal.SIGKILL
    run.finish(answers)
    run = new_run(questions)
    summary = run.folder.with_suffix(".json")
    assert run.attempt("--replicas", 3, "--summary-json", summary) == WITH_ERRORS
    figures = json.loads(summary.read_text())
    shares = [share["rows"] for share in figures["engines"].values()]
    assert len(shares) == 3 and min(shares) > 0 and sum(shares) == figures["ok"]
    run.check_finished(answers)


def test_an_engine_that_is_killed_costs_no_row(new_run, questions, answers):
    run = new_run(questions)
    command = run.start("--replicas", 2, **SLOW)
    command.wait_until(lambda: len(command.computed) >= 50)
    victim, other = sorted(engines_of(command))
    check_memory({command.pid, victim, other})
    os.kill(victim, signal.SIGKILL)
    command.wait_until(lambda: len(command.computed) >= 150)
    os.kill(other, signal.SIGKILL)
    assert command.wait() == WITH_ERRORS, command.stderr
    assert command.stderr.count("has ended (signal 9") == 2
    assert "it is started again, 1 of 3 times" in command.stderr
    assert sorted(command.computed) == sorted(set(command.computed))
    lost = [row for row in read_rows(run.output) if "engines ended" in (row["error_message"] or "")]
    assert len(lost) <= 16  # that were under way in both
    if not lost:
        run.check_finished(answers)


def attempt(run: ResumableRun, rng: random.Random) -> tuple[Command, set[int]]:
    """Kill an engine, an image worker and the run itself, each after so many rows."""
    command = run.start("--replicas", rng.choice([2, 3]), step_seconds=0.01)
    seen: set[int] = set()
    for kind, rows in zip(
        [*rng.sample([ENGINE, IMAGE_WORKER], 2), None],
        sorted(rng.choices(range(60), k=3)),
        strict=True,
    ):
        command.ended_before(partial(has_computed, command, rows))
        command.ended(rng.uniform(0, 0.03))
        seen |= engines_of(command)
        if kind is None:
            command.send_signal(signal.SIGKILL)
        elif pids := worker_pids(command.pid, kind):
            os.kill(rng.choice(sorted(pids)), signal.SIGKILL)
    return command, seen


def has_computed(command: Command, rows: int) -> bool:
    return len(command.computed) >= rows


def kills(new_run, questions, answers, num_kills: int, rng: random.Random) -> None:
    """As often as asked for, on one output or, when it is done, on the next."""
    landed = 0
    seen: set[int] = set()
    while landed < num_kills:
        run = new_run(questions)
        run.arguments += ["--image-workers", 2]
        status = -signal.SIGKILL
        while status == -signal.SIGKILL and landed < num_kills:
            command, engines = attempt(run, rng)
            seen |= engines
            status = command.wait()
            assert not run.acknowledged.intersection(command.computed)
            assert "Traceback" not in command.stderr
            assert status in (-signal.SIGKILL, WITH_ERRORS), command.stderr
            run.acknowledged.update(command.acknowledged)
            landed += status == -signal.SIGKILL
        assert run.attempt() == WITH_ERRORS
        # An image that a worker was killed with is an error of its row.
        assert run.start("--retry-failed").wait() == WITH_ERRORS
        run.check_finished(answers)
    wait_until(lambda: are_gone(seen))


def test_engines_workers_and_the_run_are_killed(new_run, questions, answers):
    kills(new_run, questions, answers, 2, random.Random(3))


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
def test_they_are_killed_more_often(new_run, questions, answers, seed):
    kills(new_run, questions, answers, 12, random.Random(seed))


def test_without_an_engine_what_is_done_is_kept(new_run, questions, answers):
    run = new_run(questions)
    command = run.start("--replicas", 2, **SLOW)
    command.wait_until(lambda: len(command.computed) >= 50)
    while not command.ended(0.02):
        for pid in engines_of(command):
            with suppress(ProcessLookupError):  # the run has ended meanwhile, and its engines
                os.kill(pid, signal.SIGKILL)
    assert command.wait() == 74, command.stderr
    (line,) = [line for line in command.stderr.splitlines() if line.startswith("error: ")]
    assert "no engine is left: the last ended with: signal 9" in line
    assert "run the same command again to resume" in line
    assert set(command.computed) <= set(command.acknowledged)
    run.acknowledged.update(command.acknowledged)
    assert run.attempt("--replicas", 2) == WITH_ERRORS


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_as_with_one_engine(new_run, questions, answers, number):
    """In the whole group of the run's processes, as Ctrl-C in a terminal."""
    run = new_run(questions, max_num_seqs=16)
    command = run.start("--replicas", 2, **SLOW)
    command.wait_until(lambda: len(command.computed) >= 40)
    engines = engines_of(command)
    for pid in engines:
        os.kill(pid, number)
    command.send_signal(number)
    assert command.wait() == 128 + number
    assert "run the same command again" in command.stderr
    assert set(command.computed) <= set(command.acknowledged)
    assert len(command.computed) < len(answers) and are_gone(engines)
    run.acknowledged.update(command.acknowledged)
    run.finish(answers)


def test_what_outlasts_the_grace_time_is_given_up(new_run, questions, answers):
    run = new_run(questions, max_num_seqs=16)
    command = run.start("--replicas", 2, "--grace", "0.3s", endless_from=100, step_seconds=0.001)
    command.wait_until(lambda: len(command.computed) >= 80)
    engines = engines_of(command)
    command.send_signal(signal.SIGTERM)
    assert command.wait() == 143
    assert are_gone(engines)
    run.acknowledged.update(command.acknowledged)
    run.finish(answers)
