"""Arrow columns as Python values and back, from a slice, through the disk: nothing is lost."""

from __future__ import annotations

import datetime

import pyarrow as pa
import pytest
from arrow_columns import as_json, columns
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmbatch.durable.spill import Spill
from vlmbatch.manifest.arrow_values import TIME_REDUCERS, ValueReader, time_text
from vlmbatch.manifest.stored_types import stored_type, to_array
from vlmbatch.types import Result


@settings(deadline=None, max_examples=60)
@given(columns(6), st.integers(0, 5), st.integers(0, 6))
def test_there_and_back(column: pa.Array, start: int, length: int) -> None:
    column = column.slice(start, length)
    spill: Spill[Result] = Spill(0, loose=0, reducers=TIME_REDUCERS)
    tickets = [
        spill.put(Result(0, "", extra={"x": value})) for value in ValueReader().column("x", column)
    ]
    values = [spill.take(ticket).extra["x"] for ticket in tickets]
    kind = stored_type(column.type)
    back = to_array(values, kind)
    assert back.type == kind
    assert list(map(as_json, back)) == list(map(as_json, column))
    if kind == column.type:
        assert back.equals(column)


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.timestamp(unit, zone) for unit in ("s", "ms", "us", "ns") for zone in (None, "UTC")),
        *(pa.duration(unit) for unit in ("s", "ms", "us", "ns")),
        *(pa.date64(), pa.time64("us"), pa.time64("ns")),
        *(pa.date32(), pa.time32("s"), pa.time32("ms")),
    ],
    ids=str,
)
def test_times_wait_on_the_disk_at_their_extremes(kind: pa.DataType) -> None:
    bits = kind.bit_width
    numbers = pa.array([-(2 ** (bits - 1)), -1, 0, 2 ** (bits - 1) - 1, None], f"int{bits}")
    column = numbers.cast(kind)
    nested = pa.StructArray.from_arrays([column, pa.nulls(5)], ["t", "n"])
    spill: Spill[Result] = Spill(0, loose=0, reducers=TIME_REDUCERS)
    lists = pa.ListArray.from_arrays([0, 2, 5], nested)
    maps = pa.MapArray.from_arrays([0, 2, 5], pa.array([*"abcde"]), nested)
    for array in (column, nested, lists, maps):
        for row, value in enumerate(ValueReader().column("x", array)):
            back = spill.take(spill.put(Result(0, "", extra={"x": value}))).extra["x"]
            assert to_array([back], array.type).equals(array.slice(row, 1))


def test_dictionaries_are_looked_at_again_with_every_batch() -> None:
    """pyarrow gives the batches of a row group one dictionary, but nothing says that it must."""

    def batch(values: list[str], indices: list[int]) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), pa.array(values))

    reader = ValueReader()
    first = reader.column("x", batch(["a" * 99, "b"], [0, 1, 0]))
    longer = reader.column("x", batch(["a" * 99, "b", "c"], [2, 0]))
    other = reader.column("x", batch(["d", "a" * 99], [0, 1]))
    assert (first, longer, other) == (["a" * 99, "b", "a" * 99], ["c", "a" * 99], ["d", "a" * 99])
    assert first[0] is first[2] is longer[1]


@pytest.mark.parametrize("index", [2, -1])
def test_a_value_that_its_dictionary_lacks(index: int) -> None:
    indices = pa.array([0, index, None], pa.int32())
    column = pa.DictionaryArray.from_arrays(indices, pa.array(["a", "b"]), safe=False)
    with pytest.raises(pa.ArrowInvalid, match=rf"number {index} of a dictionary of 2"):
        ValueReader().column("text", column)


def test_text_that_is_not_utf8_spoils_its_row_alone() -> None:
    text = pa.array([b"a", b"\xff", b"b"]).view(pa.string())
    for column in (text, pa.StructArray.from_arrays([text], ["t"]), text.dictionary_encode()):
        values = ValueReader().column("x", column)
        assert isinstance(values[1], UnicodeDecodeError)
        assert "a" in str(values[0]) and "b" in str(values[2])


def test_times_as_text() -> None:
    zones = {"UTC": "Z", "Europe/Berlin": "+0100", "Nowhere/Here": "Z", None: ""}
    hours = {"Europe/Berlin": "01"}
    for zone, suffix in zones.items():
        text = f"1970-01-01 {hours.get(zone or '', '00')}:00:00.000000001{suffix}"
        assert time_text(pa.scalar(1, pa.timestamp("ns", zone))) == text
    assert time_text(pa.scalar(datetime.date(2024, 2, 29))) == "2024-02-29"
    assert time_text(pa.scalar(-5, pa.duration("ns"))) == "-5"
