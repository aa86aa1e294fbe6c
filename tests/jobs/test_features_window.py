"""How far ``vlmbatch features`` reads ahead of the tower."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from vlmbatch.jobs import features
from vlmbatch.types import ImageRef, Row


def test_embedded_images_are_read_ahead_up_to_a_limit_of_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(features, "_WINDOW_BYTES", 350)
    read: list[int] = []

    def rows_with_values() -> Iterator[tuple[Row, dict[str, Any]]]:
        for index in range(50):
            read.append(index)
            images = (ImageRef(data=b"%100d" % index),)
            yield Row(index, str(index), index + 1, "m", images=images), {}

    inputs: Any = SimpleNamespace(manifest=SimpleNamespace(rows_with_values=rows_with_values))
    reader: Any = SimpleNamespace(read=lambda row: [])
    with ThreadPoolExecutor(2) as threads:
        for number, (row, _, _) in enumerate(features._in_order(inputs, reader, threads)):
            assert row.index == number
            assert len(read) <= number + 4
    assert len(read) == 50
