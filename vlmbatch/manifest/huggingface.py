"""What Hugging Face's datasets library keeps in a Parquet file's metadata: its features.

    {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, ...}}}

A column that is not listed, or has another type than its feature says, has the feature of its type
(``Features.from_arrow_schema`` there).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

_KEY = b"huggingface"

# An image there, with the type of its column.
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_IMAGE = {"_type": "Image"}


def read_features(schema: pa.Schema) -> dict[str, Any]:
    """The features of a file's columns by name; none where there are none, or they are damaged."""
    try:
        features = json.loads((schema.metadata or {})[_KEY])["info"]["features"]
    except (KeyError, TypeError, ValueError):  # written by something else under that name
        return {}
    return features if isinstance(features, dict) else {}


def features_metadata(features: Mapping[str, Any]) -> dict[bytes, bytes]:
    """The metadata that says so; none for no features."""
    if not features:
        return {}
    return {_KEY: json.dumps({"info": {"features": dict(features)}}).encode()}


def image_feature(data_type: pa.DataType) -> Any:
    """The feature of a column of embedded images, or of lists of them; None for another type."""
    if data_type == IMAGE_TYPE:
        return _IMAGE
    return [_IMAGE] if data_type == pa.list_(IMAGE_TYPE) else None


def image_type(data_type: pa.DataType) -> pa.DataType:
    """The type in which images of a manifest's column are kept: embedded ones as ``IMAGE_TYPE``."""
    if pa.types.is_dictionary(data_type):
        return image_type(data_type.value_type)
    if _is_list(data_type):
        return pa.list_(image_type(data_type.value_type))
    has_bytes = pa.types.is_struct(data_type) and data_type.get_field_index("bytes") >= 0
    return IMAGE_TYPE if has_bytes or _is_binary(data_type) else data_type


def image_value(value: Any) -> Any:
    """A value of the image column in that type."""
    if isinstance(value, str):  # a file's name may be no text
        return value.encode(errors="surrogateescape").decode(errors="backslashreplace")
    if isinstance(value, bytes):
        return {"bytes": value, "path": None}
    if isinstance(value, list):
        return [image_value(item) for item in value]
    if isinstance(value, dict) and "bytes" in value:
        return {"bytes": value["bytes"], "path": value.get("path")}
    return value


def _is_binary(data_type: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(data_type)
        or pa.types.is_large_binary(data_type)
        or pa.types.is_binary_view(data_type)
        or pa.types.is_fixed_size_binary(data_type)
    )


def _is_list(data_type: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(data_type)
        or pa.types.is_large_list(data_type)
        or pa.types.is_fixed_size_list(data_type)
        or pa.types.is_list_view(data_type)
    )
