from __future__ import annotations

import pytest

from vlmbatch.config import MIN_HOST_MEMORY, SessionConfig
from vlmbatch.errors import ConfigError
from vlmbatch.session import host_memory
from vlmbatch.session.host_memory import HostMemory, available_memory, default_host_memory


@pytest.mark.parametrize("total", [MIN_HOST_MEMORY, 2**30, 4 * 2**30 + 12_345])
def test_the_parts_are_no_more_than_the_whole(total):
    memory = HostMemory.divide(total)
    parts = (memory.decoded, memory.pixels, memory.encoded, memory.rows, memory.results)
    assert min(parts) > 0
    assert 0.99 * total < sum(parts) + memory.window_rows * host_memory._ROW_BYTES <= total


def test_a_gibibyte_is_enough_for_a_million_rows():
    assert HostMemory.divide(2**30).window_rows >= 1_000_000


@pytest.mark.parametrize(
    ("available", "expected"),
    [(2**20, MIN_HOST_MEMORY), (4 * 2**30, 2**29), (2**37, 2**30)],
)
def test_the_default_is_a_share_of_what_there_is(monkeypatch, available, expected):
    monkeypatch.setattr(host_memory, "available_memory", lambda: available)
    assert default_host_memory() == expected
    assert HostMemory.divide(None) == HostMemory.divide(expected)


def test_memory_of_this_machine():
    assert 2**28 < available_memory() < 2**50


def test_too_little_is_refused_with_both_numbers():
    with pytest.raises(ConfigError, match=r"at least 16777216 bytes \(16MiB\), got 1000"):
        SessionConfig("model", host_memory=1000)
