"""Types of the columns that pass through, and that no value changes on the way."""

from __future__ import annotations

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlmbatch.config import ManifestConfig, SamplingParams
from vlmbatch.errors import ManifestError
from vlmbatch.manifest import passthrough as extras
from vlmbatch.manifest.open import open_manifest
from vlmbatch.manifest.schema import is_json_text, output_schema
from vlmbatch.output.parquet_writer import ParquetResultWriter
from vlmbatch.types import Result


def inferred(manifest, values) -> pa.Field:
    return manifest([{"prompt": "a", "x": value} for value in values]).scan().extra_schema.field(0)


@pytest.mark.parametrize("batch_rows", [1, 4096])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, None, 2], pa.int64()),
        ([1, 2.5], pa.float64()),
        (["a", None], pa.string()),
        ([True, None], pa.bool_()),
        ([None, None], pa.string()),
        ([[1], [], None, [2.5]], pa.list_(pa.float64())),
        ([[], []], pa.list_(pa.string())),
        ([{"a": 1}, {"b": "x"}], pa.struct([("a", pa.int64()), ("b", pa.string())])),
        ([{}, {"a": None}], pa.struct([("a", pa.string())])),
    ],
)
def test_common_type(manifest, monkeypatch, values, expected, batch_rows):
    monkeypatch.setattr(extras, "_BATCH_ROWS", batch_rows)
    field = inferred(manifest, values)
    assert (field.type, is_json_text(field)) == (expected, False)


@pytest.mark.parametrize("batch_rows", [1, 4096])
@pytest.mark.parametrize(
    "values",
    [
        [1, "a"],
        [True, 1],
        [[1], ["a"]],
        [{"a": 1}, {"a": "x"}],
        [{"a": 1}, [1]],
        [2**63],
        [2**53 + 1, 0.5],
        [[2**53 + 1], [0.5]],
        [{"a": -(2**53) - 1}, {"a": 0.5}],
        [{}],
        [[{}]],
        [[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]],
        [{f"key{n}": n} for n in range(300)],
    ],
)
def test_no_common_type_becomes_json_text(manifest, monkeypatch, values, batch_rows):
    monkeypatch.setattr(extras, "_BATCH_ROWS", batch_rows)
    field = inferred(manifest, values)
    assert field.type == pa.string() and is_json_text(field)


def test_columns_in_order_of_appearance(manifest):
    rows = [{"prompt": "a", "z": 1}, {"a": 2, "z": 1}, {"m": 3}]
    assert manifest(rows).scan().extra_schema.names == ["z", "a", "m"]


def test_column_first_met_in_a_later_batch(manifest):
    rows = [{"prompt": "a", "x": 1}] * 5000 + [{"prompt": "a", "x": 0.5, "y": "late"}]
    schema = manifest(rows).scan().extra_schema
    assert schema.equals(pa.schema([("x", pa.float64()), ("y", pa.string())]))


def test_too_many_columns(manifest):
    rows = [{"prompt": "a", f"c{n}": n} for n in range(extras.MAX_COLUMNS + 1)]
    with pytest.raises(ManifestError, match=r'm\.jsonl:1001: "c1000" is the 1001th'):
        manifest(rows).scan()


_json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(2**53 - 2, 2**53 + 2)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=2), inner, max_size=3)
    ),
    max_leaves=6,
)


def _same(original, read) -> bool:
    """Equal but for the nulls that Arrow adds where objects of one column differ in keys."""
    if isinstance(original, dict) and isinstance(read, dict):
        return original.keys() <= read.keys() and all(
            _same(original.get(key), value) for key, value in read.items()
        )
    if isinstance(original, list) and isinstance(read, list):
        return len(original) == len(read) and all(map(_same, original, read))
    if isinstance(original, bool) or isinstance(read, bool):
        return original is read
    if isinstance(original, float) and isinstance(read, float):
        return math.isclose(original, read, rel_tol=0, abs_tol=0)
    return original == read


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(values=st.lists(_json_values, min_size=1, max_size=6), batch_rows=st.integers(1, 4))
def test_every_json_value_survives_the_way_to_parquet(tmp_path, values, batch_rows):
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps({"prompt": "a", "x": v}) + "\n" for v in values))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extras, "_BATCH_ROWS", batch_rows)
        manifest = open_manifest(ManifestConfig(str(path)), SamplingParams())
        info = manifest.scan()
    output = tmp_path / "out.parquet"
    writer = ParquetResultWriter(output, output_schema(info.extra_schema), {})
    for row in manifest.rows():
        assert row.error is None
        writer.write(Result(row.index, row.id, extra=row.extra))
    writer.close()
    table = pq.read_table(output)
    read = table["x"].to_pylist()
    if is_json_text(table.schema.field("x")):
        read = [None if text is None else json.loads(text) for text in read]
    assert all(map(_same, values, read)), (values, read)
