"""Signals, deadline, error budget and lock: how a run ends early, and is finished by the next."""

from __future__ import annotations

import random
import signal
from functools import partial

import pytest
from resumable_runs import WITH_ERRORS, read_rows, write_manifest

SLOW = {"step_seconds": 0.02}
MANY = 80  # of the rows before 100; the last may have to wait for endless ones
ON_SIGNAL = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}


def stopped(command) -> str:
    """The line that says why and what to do."""
    lines = [line for line in command.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in command.stderr, command.stderr
    assert "run the same command again" in lines[0]
    return lines[0]


@pytest.mark.parametrize("number", ON_SIGNAL)
def test_rows_under_way_are_finished(new_run, expected, number):
    run = new_run(max_num_seqs=16)
    command = run.start(**SLOW)
    command.wait_until(lambda: len(command.computed) >= 40)
    command.send_signal(number)
    assert command.wait() == ON_SIGNAL[number]
    message = stopped(command)
    assert number.name in message and f"of {len(expected)} rows" in message
    assert sorted(command.computed) == sorted(set(command.computed))
    assert set(command.computed) <= set(command.acknowledged)
    assert 40 < len(command.computed) < 100
    run.acknowledged.update(command.acknowledged)
    run.finish(expected)


@pytest.mark.parametrize("grace", ["0", "0.3s"])
def test_rows_that_outlast_the_grace_time_are_given_up(new_run, expected, grace):
    run = new_run(max_num_seqs=16)
    command = run.start("--grace", grace, endless_from=100, step_seconds=0.001)
    command.wait_until(lambda: len(command.computed) >= MANY)
    assert not command.ended(0.1)
    command.send_signal(signal.SIGTERM)
    assert command.wait() == 143
    stopped(command)
    run.acknowledged.update(command.acknowledged)
    assert len(run.acknowledged) < 110
    run.finish(expected)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(new_run, expected, second):
    """Where the first would wait for rows that never end."""
    run = new_run()
    command = run.start("--grace", "1h", endless_from=100, step_seconds=0.001)
    command.wait_until(lambda: len(command.computed) >= MANY)
    assert not command.ended(0.1)
    command.send_signal(signal.SIGTERM)
    command.wait_until(lambda: "another signal" in command.stderr)
    assert not command.ended(0.05)
    command.send_signal(second)
    assert command.wait() == 143
    assert "stopped by SIGTERM" in stopped(command)
    run.acknowledged.update(command.acknowledged)
    run.finish(expected)


def test_a_terminal_that_closes_leaves_the_time_of_grace(new_run):
    """The shell sends one SIGHUP and the kernel another."""
    command = new_run().start("--grace", "1h", endless_from=100, step_seconds=0.001)
    command.wait_until(lambda: len(command.computed) >= MANY)
    assert not command.ended(0.1)  # by now it waits for rows that never end
    command.send_signal(signal.SIGHUP)
    command.wait_until(lambda: "another signal" in command.stderr)
    command.send_signal(signal.SIGHUP)
    assert not command.ended(0.3)
    command.send_signal(signal.SIGTERM)
    assert command.wait() == 129
    assert "stopped by SIGHUP" in stopped(command)


@pytest.mark.parametrize("number", ON_SIGNAL)
def test_before_the_first_answer(new_run, expected, number):
    run = new_run()
    command = run.start(load_seconds=60)
    command.wait_until(lambda: command.has("loading"))
    command.send_signal(number)
    assert command.wait(20) == ON_SIGNAL[number]
    stopped(command)
    run.finish(expected)


@pytest.mark.parametrize("least", [4, pytest.param(60, marks=pytest.mark.soak)])
@pytest.mark.parametrize("shard_rows", [None, 64])
def test_at_random_moments(new_run, expected, shard_rows, least):
    """Wherever it comes, once or twice: no traceback, no row lost, and the next run goes on."""
    rng = random.Random(shard_rows)
    num_stopped = 0
    while num_stopped < least:
        run = new_run(shard_rows=shard_rows, step_seconds=0.003)
        status = None
        while status != WITH_ERRORS:
            signals = rng.choices([*ON_SIGNAL], k=rng.choice([1, 1, 2]))
            command = run.start()
            command.wait_until(partial(command.has, "started"))
            command.ended(rng.uniform(0.005, 0.2))
            for number in signals:
                command.send_signal(number)
                command.ended(rng.choice([0, 0.02]))
            status = command.wait()
            assert not run.acknowledged.intersection(command.computed)
            run.acknowledged.update(command.acknowledged)
            if status != WITH_ERRORS:
                num_stopped += 1
                # The second may meet an interpreter that has put its handlers away.
                allowed = {ON_SIGNAL[number] for number in signals} | {-n for n in signals[1:]}
                assert status in allowed, command.stderr
                tells = status > 0  # nothing, where a signal ended it with the handlers put away
                if tells and command.has("computed") and not run.output.exists():
                    stopped(command)
        run.finish(expected)


def test_a_deadline_again_and_again(new_run, expected):
    """As a cron job with a slot of its own."""
    run = new_run(max_num_seqs=16)
    done = []
    while (status := run.attempt("--deadline", "0.3s", **SLOW)) == 143:
        done.append(len(run.acknowledged))
        assert len(done) < 60
    assert status == WITH_ERRORS
    assert len(done) > 1 and 0 < done[0] < done[-1] and done == sorted(done)
    run.check_finished(expected)


def test_a_deadline_says_so(new_run):
    command = new_run().start("--deadline", "0.2s", **SLOW)
    assert command.wait() == 143
    assert "deadline" in stopped(command)


def test_an_error_budget(new_run, tmp_path):
    manifest = write_manifest(tmp_path / "manifest.jsonl", 1000)
    lines = manifest.read_text().splitlines()
    lines[::4] = ['{"prompt": 5}' for _ in lines[::4]]
    manifest.write_text("\n".join(lines))
    run, undisturbed = new_run(manifest), new_run(manifest)
    command = run.start("--max-error-rate", "20%", step_seconds=0.001)
    assert command.wait() == 1
    message = stopped(command)
    assert "20.0%" in message and "prompt_invalid" in message
    assert 200 <= len(command.acknowledged) < 600
    run.acknowledged.update(command.acknowledged)
    assert run.attempt("--max-error-rate", "0.5") == WITH_ERRORS
    assert undisturbed.attempt() == WITH_ERRORS
    run.check_finished(read_rows(undisturbed.output))


def test_a_second_run_is_turned_away(new_run, expected):
    run = new_run()
    first = run.start(**SLOW)
    first.wait_until(lambda: len(first.computed) > 0)
    for options in ([], ["--overwrite"]):
        second = run.start(*options)
        assert second.wait() == 75
        assert f"process {first.pid} " in second.stderr
        assert not second.has("loading")
    assert first.wait() == WITH_ERRORS
    run.check_finished(expected)


def test_it_is_turned_away_before_it_reads_a_manifest(new_run, tmp_path):
    run = new_run()
    first = run.start(**SLOW)
    first.wait_until(lambda: len(first.computed) > 0)
    run.arguments[1] = tmp_path / "missing.jsonl"
    assert run.start().wait() == 75
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert run.start().wait() == 2


def test_two_started_at_once(new_run, expected):
    """One does all the work, and the other none."""
    for _ in range(4):
        run = new_run(step_seconds=0.005)
        both = [run.start(), run.start()]
        assert sorted(command.wait() for command in both) == [WITH_ERRORS, 75]
        assert sorted(len(command.computed) for command in both)[0] == 0
        run.check_finished(expected)
