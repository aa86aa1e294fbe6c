"""The line that says what stopped the work, when one more signal comes with it."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from vlmbatch import log
from vlmbatch.commands.exits import Terminated, install_signal_handlers
from vlmbatch.commands.reporting import Reporting, ReportOptions
from vlmbatch.session.signals import ending_signals
from vlmbatch.stages.stopping import RunStoppedError
from vlmbatch.stats import RunStats


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in ending_signals()}
    install_signal_handlers()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_it_is_written_before_the_signal_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def error(*words: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        written.append(words)

    monkeypatch.setattr(log.logger, "error", error)
    stopped = RunStoppedError("stopped by SIGINT", 130)
    with pytest.raises(Terminated):
        Reporting(ReportOptions(), False).finish(RunStats(), {}, lambda: None, stopped)
    assert written == [("%s", stopped)]
