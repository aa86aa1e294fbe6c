"""Random Arrow columns of every type that a Parquet manifest may bring, at its extremes."""

from __future__ import annotations

import base64
import decimal
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

Values = st.SearchStrategy[Any]


def integers(bits: int, *, signed: bool = True) -> Values:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return st.sampled_from([low, high, 0, 1]) | st.integers(low, high)


def decimals(precision: int, scale: int) -> Values:
    most = 10**precision - 1
    digits = st.sampled_from([most, -most, 0]) | st.integers(-most, most)
    with decimal.localcontext(prec=80):
        return digits.map(lambda number: decimal.Decimal(number).scaleb(-scale, CONTEXT))


CONTEXT = decimal.Context(prec=80)

# Parquet has no seconds: what is stored in milliseconds must fit these.
SECONDS = integers(53)
BYTES = st.binary(max_size=5)
TEXT = st.text(st.characters(codec="utf-8"), max_size=5)
# Types with what pyarrow makes their arrays of; integers for times.
LEAVES: list[tuple[pa.DataType, Values]] = [
    (pa.null(), st.none()),
    (pa.bool_(), st.booleans()),
    *((getattr(pa, f"int{bits}")(), integers(bits)) for bits in (8, 16, 32, 64)),
    *((getattr(pa, f"uint{bits}")(), integers(bits, signed=False)) for bits in (8, 16, 32, 64)),
    (pa.float16(), st.floats(width=16, allow_nan=False, allow_infinity=False).map(np.float16)),
    (pa.float32(), st.floats(width=32, allow_nan=False, allow_infinity=False)),
    (pa.float64(), st.floats(allow_nan=False, allow_infinity=False)),
    (pa.string(), TEXT),
    (pa.large_string(), TEXT),
    (pa.binary(), BYTES),
    (pa.large_binary(), BYTES),
    (pa.binary(3), st.binary(min_size=3, max_size=3)),
    (pa.decimal128(38, 0), decimals(38, 0)),
    (pa.decimal128(38, 38), decimals(38, 38)),
    (pa.decimal256(76, 5), decimals(76, 5)),
    (pa.date32(), integers(32)),
    (pa.date64(), integers(32).map(lambda day: day * 86_400_000)),
    (pa.time32("s"), st.integers(0, 86_399)),
    (pa.time32("ms"), st.integers(0, 86_399_999)),
    (pa.time64("us"), st.integers(0, 86_400 * 10**6 - 1)),
    (pa.time64("ns"), st.integers(0, 86_400 * 10**9 - 1)),
    (pa.timestamp("s"), SECONDS),
    *(
        (pa.timestamp(unit, zone), integers(64))
        for unit in ("ms", "us", "ns")
        for zone in (None, "UTC", "Europe/Berlin", "Nowhere/Here")
    ),
    *((pa.duration(unit), integers(64)) for unit in ("s", "ms", "us", "ns")),
    (pa.uuid(), st.binary(min_size=16, max_size=16)),
    (pa.bool8(), integers(8)),
    (pa.json_(), TEXT),
    (pa.opaque(pa.binary(), "thing", "maker"), BYTES),
    (pa.dictionary(pa.int8(), pa.string()), TEXT),
]


@st.composite
def columns(draw: st.DrawFn, length: int, depth: int = 3) -> pa.Array:
    """A column of a random type, nested in lists, structs and maps."""
    kind = draw(st.sampled_from(["leaf", "leaf", "list", "large", "fixed", "struct", "map"]))
    if kind == "leaf" or depth == 0:
        return draw(leaves(length))
    missing = draw(st.lists(st.booleans(), min_size=length, max_size=length))
    mask = pa.array(missing, pa.bool_())
    if kind == "struct":
        names = draw(st.lists(TEXT.filter(is_plain), min_size=1, max_size=3, unique=True))
        fields = [draw(columns(length, depth - 1)) for _ in names]
        return pa.StructArray.from_arrays(fields, names, mask=mask)
    if kind == "fixed":
        # pyarrow 26 casts fixed lists of nulls, within lists beside uuids, to lists too short.
        kinds = columns(2 * length, depth - 1).filter(
            lambda array: not pa.types.is_null(array.type)
        )
        values = draw(kinds)
        return pa.FixedSizeListArray.from_arrays(values, 2, mask=mask)
    sizes = draw(st.lists(st.integers(0, 3), min_size=length, max_size=length))
    sizes = [0 if gone else size for gone, size in zip(missing, sizes, strict=True)]
    offsets = np.cumsum([0, *sizes])
    values = draw(columns(int(offsets[-1]), depth - 1))
    if kind == "map":
        keys = pa.array([f"k{number}" for number in range(len(values))], pa.string())
        return pa.MapArray.from_arrays(pa.array(offsets, pa.int32()), keys, values, mask=mask)
    if kind == "large":
        return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values, mask=mask)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, mask=mask)


def is_plain(name: str) -> bool:
    """Whether pyarrow can tell fields apart by this name: it takes dots and NUL for its own."""
    return bool(name) and "." not in name and "\0" not in name


@st.composite
def leaves(draw: st.DrawFn, length: int) -> pa.Array:
    data_type, values = draw(st.sampled_from(LEAVES))
    drawn = draw(st.lists(st.none() | values, min_size=length, max_size=length))
    if isinstance(data_type, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(data_type, pa.array(drawn, data_type.storage_type))
    return pa.array(drawn, data_type)


def as_json(scalar: pa.Scalar) -> Any:
    """What the scalar is in the lines of JSON, made by another way than the code's."""
    kind = scalar.type
    if isinstance(scalar, pa.ExtensionScalar):
        if isinstance(kind, pa.UuidType | pa.Bool8Type) and scalar.is_valid:
            return str(scalar.as_py()) if isinstance(kind, pa.UuidType) else scalar.as_py()
        return as_json(scalar.value) if scalar.is_valid else None
    if not scalar.is_valid:
        return None
    if pa.types.is_dictionary(kind):
        return as_json(scalar.value)
    if pa.types.is_struct(kind):
        return {name: as_json(scalar[name]) for name in scalar}
    if pa.types.is_map(kind):
        keys, items = scalar.values.field(0), scalar.values.field(1)
        return [[as_json(key), as_json(item)] for key, item in zip(keys, items, strict=True)]
    if kind.num_fields:
        return [as_json(item) for item in scalar.values]
    if pa.types.is_temporal(kind):
        if pa.types.is_timestamp(kind) and kind.tz == "Nowhere/Here":
            scalar = scalar.cast(pa.timestamp(kind.unit, "UTC"))
        return scalar.cast(pa.string()).as_py()
    value = scalar.as_py()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, decimal.Decimal):
        return str(value)
    return float(value) if isinstance(value, np.floating) else value
