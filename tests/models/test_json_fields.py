"""Files of a checkpoint that are JSON, as everybody may have written them."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlmbatch.errors import CheckpointError
from vlmbatch.models.json_fields import read_json


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"unk_token": "\\ud800"}', "has a lone surrogate"),
        (b'{"\\uDC00": 1}', "has a lone surrogate"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b"[]", "expected a JSON object, found list"),
    ],
)
def test_what_no_message_could_be_written_of_is_refused(
    content: bytes, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"config\.json.*{expected}"):
        read_json(path)


def test_both_halves_of_a_pair_are_a_character(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'{"a": "\\ud83d\\ude00"}')
    assert read_json(path) == {"a": "\U0001f600"}
