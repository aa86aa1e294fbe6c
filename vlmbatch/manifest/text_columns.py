"""Columns of cells that are all text, as in CSV: what type their values have."""

from __future__ import annotations

import math
import re
from typing import Any

import pyarrow as pa

from vlmbatch.manifest.ids import MAX_EXACT

_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,18})")  # not 007, which is no number to be kept as 7
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,18})(?:\.[0-9]{1,18})?(?:[eE][+-]?[0-9]{1,3})?")
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False}
_BOOLEANS["FALSE"] = False
_MAX_INT64 = 2**63


class TextColumn:
    """The narrowest of bool, int64, float64 and string that holds all cells of a column.

    Numbers are those that JSON would hold so: with a zero in front, a plus or a blank, a cell is
    text. An empty cell is null.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._is_empty = True
        self._may_be_bool = True
        self._may_be_int = True
        self._may_be_float = True
        self._has_large = False

    def add(self, cell: str) -> None:
        """Take in one cell."""
        if not cell or not (self._may_be_bool or self._may_be_int or self._may_be_float):
            self._is_empty = self._is_empty and not cell
            return
        self._is_empty = False
        self._may_be_bool = self._may_be_bool and cell in _BOOLEANS
        value = number(cell)
        if not isinstance(value, int):
            self._may_be_int = False
            self._may_be_float = self._may_be_float and isinstance(value, float)
        elif not -MAX_EXACT <= value <= MAX_EXACT:
            self._has_large = True  # a float may be another integer

    @property
    def type(self) -> pa.DataType:
        if self._is_empty:
            return pa.string()
        if self._may_be_bool:
            return pa.bool_()
        if self._may_be_int:
            return pa.int64()
        return pa.float64() if self._may_be_float and not self._has_large else pa.string()

    def value(self, cell: str) -> Any:
        """What the cell is in a column of this type."""
        if not cell:
            return None
        if (data_type := self.type) == pa.string():
            return cell
        if data_type == pa.bool_():
            return _BOOLEANS.get(cell, cell)
        value = number(cell)
        return float(value) if data_type == pa.float64() and isinstance(value, int) else value


def number(cell: str) -> int | float | str:
    """The number that a cell is as JSON would write it; else the cell."""
    if _INTEGER.fullmatch(cell):
        value = int(cell)
        return value if -_MAX_INT64 <= value < _MAX_INT64 else cell
    if _NUMBER.fullmatch(cell) and math.isfinite(decimal := float(cell)):
        return decimal
    return cell
