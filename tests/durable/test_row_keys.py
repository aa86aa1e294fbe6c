"""Keys by which unchanged rows are known again in an edited manifest."""

from __future__ import annotations

import errno
import os
import random
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from failing_files import FaultyFiles, PowerCut, UnsyncedFiles, VolatileFiles
from hypothesis import given
from hypothesis import strategies as st

from vlmbatch.config import ImageResolution, SamplingParams
from vlmbatch.durable import row_keys as row_keys_module
from vlmbatch.durable.content_digest import content_digest
from vlmbatch.durable.row_keys import KEY_BYTES, RowKeys, RowKeyWriter, copy_row_keys, row_key
from vlmbatch.errors import ErrorCode, OutputError, RowError
from vlmbatch.types import ImageRef, Row

GREEDY = SamplingParams(seed=3)
SAMPLED = SamplingParams(seed=3, temperature=1.0)
MESSAGES = [{"role": "user", "content": "what?"}]
ROW = Row(0, "a", 1, "m.jsonl", "what?", None, (ImageRef(data=b"1"),), GREEDY, {"x": 1})
BAD = replace(ROW, error=RowError(ErrorCode.PROMPT_INVALID, "no"))

CHANGES: dict[str, Any] = {
    "max_tokens": 5,
    "temperature": 2.0,
    "top_p": 0.5,
    "top_k": 7,
    "seed": 4,
    "stop": ("x",),
    "stop_token_ids": (2,),
    "ignore_eos": True,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "no_repeat_ngram_size": 3,
    "logprobs": 3,
    "choices": ("a", "b"),
    "json_schema": '{"type": "object"}',
    "regex": "a+",
    "min_tokens": 1,
    "n": 2,
    "best_of_retries": 1,
}


def number_key(number: int) -> bytes:
    return row_key(replace(ROW, prompt=str(number)))


def write(path: Path, keys: list[bytes], files=None) -> None:
    with RowKeyWriter(path, files or UnsyncedFiles()) as writer:
        for key in keys:
            writer.append(key)


class TestKey:
    @pytest.mark.parametrize(
        "same",
        [
            replace(ROW, index=7, line=8, file="n.jsonl", id="b", extra={}),
            replace(ROW, images=(ImageRef("a name is no content.png", b"1"),)),
            replace(ROW, sampling=replace(GREEDY, seed=4, top_k=2, top_p=0.5, min_p=0.5)),
        ],
    )
    def test_does_not_depend_on(self, same):
        assert row_key(same) == row_key(ROW)

    def test_depends_on_content(self):
        rows = [
            ROW,
            BAD,
            replace(BAD, error=RowError(ErrorCode.PROMPT_INVALID, "yes")),
            replace(ROW, prompt="what? "),
            replace(ROW, prompt="caf\udce9"),
            replace(ROW, prompt=None, messages=MESSAGES),
            replace(ROW, prompt=None, messages=[*MESSAGES, *MESSAGES]),
            replace(ROW, prompt=None, messages=[{**MESSAGES[0], "x": None}]),
            replace(ROW, prompt=None, messages=[{**MESSAGES[0], "x": float("nan")}]),
            replace(ROW, prompt=None, messages=[{**MESSAGES[0], "x": b"1"}]),
            replace(ROW, images=()),
            replace(ROW, images=(ImageRef(data=b"2"),)),
            replace(ROW, images=(ImageRef(data=b"1"), ImageRef(data=b"2"))),
            replace(ROW, images=(ImageRef(data=b"2"), ImageRef(data=b"1"))),
            replace(ROW, images=(ImageRef("no such file"),)),
            *(
                replace(ROW, images=(ImageRef(data=b"1", resolution=ImageResolution(*pixels)),))
                for pixels in ((1,), (2,), (1, 1), (None, 1))
            ),
            replace(ROW, images=(ImageRef("no file can be called\0this"),)),
        ]
        assert len({row_key(row) for row in rows}) == len(rows)

    def test_depends_on_every_sampling_parameter(self):
        assert CHANGES.keys() == {field.name for field in fields(SamplingParams)}
        variants = [replace(SAMPLED, **{name: value}) for name, value in CHANGES.items()]
        retried = replace(GREEDY, best_of_retries=2)  # which may sample
        variants += [retried, replace(retried, seed=4)]
        variants += [SAMPLED, GREEDY, replace(GREEDY, max_tokens=5), replace(GREEDY, stop=("x",))]
        assert len({row_key(replace(ROW, sampling=s)) for s in variants}) == len(variants)

    def test_is_of_today_and_of_tomorrow(self):
        """Keys outlive the process that made them; another format needs another ``_PERSON``."""
        assert row_key(ROW).hex() == "9aa0a84bcc17bd8a33a54b2c0b83510a"

    @given(st.lists(st.tuples(st.text(max_size=3), st.binary(max_size=3)), max_size=4))
    def test_no_two_contents_run_together(self, pairs):
        images = tuple(ImageRef(data=data) for _, data in pairs)
        texts = [text for text, _ in pairs]
        joined = replace(ROW, prompt="".join(texts), images=images)
        split = replace(ROW, prompt="".join(texts[:1]), images=images[:1])
        same = (joined.prompt, images) == (split.prompt, images[:1])
        assert (row_key(joined) == row_key(split)) == same


class TestImageFile:
    @pytest.fixture
    def image(self, tmp_path) -> Path:
        path = tmp_path / "a.png"
        path.write_bytes(b"12345")
        os.utime(path, ns=(10**18, 10**18))
        return path

    def key(self, path: Path | str) -> bytes:
        return row_key(replace(ROW, images=(ImageRef(str(path)),)))

    def test_counts_by_size_and_time(self, image):
        before = self.key(image)
        os.utime(image, ns=(5, 10**18))  # when it was last read
        assert self.key(image) == before
        os.utime(image, ns=(10**18, 10**18 + 1))
        later = self.key(image)
        image.write_bytes(b"123456")
        os.utime(image, ns=(10**18, 10**18))
        longer = self.key(image)
        image.unlink()
        assert len({before, later, longer, self.key(image)}) == 4

    def test_counts_by_its_place_however_it_is_written(self, image, monkeypatch):
        other = image.with_name("b.png")
        other.hardlink_to(image)
        assert self.key(other) != self.key(image)
        monkeypatch.chdir(image.parent)
        (image.parent / "folder").mkdir()
        assert self.key("a.png") == self.key("./folder/../a.png") == self.key(image)


class TestWriter:
    def test_takes_the_keys_of_rows_in_order(self, tmp_path):
        rows = [replace(ROW, index=n, prompt=f"{n}?") for n in range(5)]
        with RowKeyWriter(tmp_path / "keys") as writer:
            for row in rows:
                writer.add(row)
            assert len(writer) == 5
        keys = RowKeys.load(tmp_path / "keys")
        assert keys.find(b"".join(map(row_key, rows))).tolist() == [0, 1, 2, 3, 4]

    def test_keeps_the_keys_of_rows_that_an_earlier_process_read(self, tmp_path):
        """Row 1 may have been answered by then, from what its image was."""
        path = tmp_path / "keys"
        rows = [replace(ROW, index=n, prompt=f"{n}?") for n in range(4)]
        changed = [replace(row, prompt=f"{row.prompt} now") for row in rows]
        for some in (rows[:2], changed):
            with RowKeyWriter(path) as writer:
                for row in some:
                    writer.add(row)
        expected = [*map(row_key, rows[:2]), *map(row_key, changed[2:])]
        assert path.read_bytes() == b"".join(expected)

    def test_refuses_rows_out_of_order(self, tmp_path):
        with RowKeyWriter(tmp_path / "keys") as writer, pytest.raises(AssertionError):
            writer.add(replace(ROW, index=1))

    def test_continues_behind_a_torn_key(self, tmp_path):
        path = tmp_path / "keys"
        path.write_bytes(b"a" * 16 + b"b" * 15)
        assert RowKeys.load(path).find(b"a" * 16).tolist() == [0]
        write(path, [b"c" * 16])
        assert path.read_bytes() == b"a" * 16 + b"c" * 16

    @pytest.mark.parametrize("buffer", [1, 64, 10_000])
    def test_power_cut_at_every_call(self, tmp_path, monkeypatch, buffer):
        """What is left is a prefix of the keys, then at most some that match nothing; once
        ``close`` has returned, all of them."""
        monkeypatch.setattr(row_keys_module, "_BUFFER_BYTES", buffer)
        keys = [number_key(n) for n in range(20)]
        for at in range(100):
            before, after = tmp_path / f"{at}", tmp_path / f"{at}-after"
            before.mkdir()
            files = VolatileFiles(before, at)
            try:
                write(before / "keys", keys, files)
                finished = True
            except PowerCut:
                finished = False
            files.survive(after, random.Random(at))
            if (after / "keys").exists():
                with RowKeyWriter(after / "keys", UnsyncedFiles()) as writer:
                    left = len(writer)
                    for key in keys[left:]:
                        writer.append(key)
            found = RowKeys.load(after / "keys").find(b"".join(keys)).tolist()
            assert all(row in (n, -1) for n, row in enumerate(found))
            if finished:
                assert found == list(range(20))
                return
        raise AssertionError("the writer never ends")

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
    def test_failing_disk_is_told_once(self, tmp_path, number):
        for at in range(100):
            path = tmp_path / f"{at}"
            path.mkdir()
            files = FaultyFiles(at, number)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(row_keys_module, "_BUFFER_BYTES", 64)
                try:
                    with RowKeyWriter(path / "keys", files) as writer:
                        for n in range(9):
                            writer.append(number_key(n))
                    assert at > 3
                    return
                except OutputError as error:
                    assert str(path / "keys") in str(error)
                    assert not isinstance(error.__cause__.__context__, OutputError)
            write(path / "keys", [number_key(9)])
            assert (path / "keys").stat().st_size % KEY_BYTES == 0
        raise AssertionError("the writer never ends")

    def test_short_writes(self, tmp_path):
        write(tmp_path / "keys", [b"a" * 16, b"b" * 16], FaultyFiles(1))
        assert (tmp_path / "keys").read_bytes() == b"a" * 16 + b"b" * 16

    def test_no_folder(self, tmp_path):
        with pytest.raises(OutputError, match="No such file or directory"):
            RowKeyWriter(tmp_path / "none" / "keys")


class TestCopy:
    def test_copies_whole_keys(self, tmp_path, monkeypatch):
        monkeypatch.setattr(row_keys_module, "_COPY_BYTES", 48)
        source, target = tmp_path / "a", tmp_path / "b"
        keys = b"".join(number_key(n) for n in range(10))
        source.write_bytes(keys + b"torn")
        copy_row_keys(source, target)
        assert target.read_bytes() == keys

    def test_of_no_file_has_no_keys(self, tmp_path):
        copy_row_keys(tmp_path / "a", tmp_path / "b")
        assert len(RowKeys.load(tmp_path / "b")) == 0

    def test_tells_what_cannot_be_read(self, tmp_path):
        told = f"{re.escape(str(tmp_path))} cannot be read: Is a directory"
        with pytest.raises(OutputError, match=told):
            copy_row_keys(tmp_path, tmp_path / "b")


def test_bytes_that_rows_share_are_hashed_once():
    content_digest.cache_clear()
    photo = os.urandom(100)
    keys = {row_key(Row(n, "", 1, "m", "p", images=(ImageRef(data=photo),))) for n in range(9)}
    assert len(keys) == 1 and content_digest.cache_info().misses == 1


class TestFind:
    @given(
        st.lists(st.integers(0, 11), max_size=40),
        st.none() | st.lists(st.booleans(), max_size=50),
    )
    def test_finds_the_first_wanted_row(self, tmp_path_factory, values, wanted):
        def key(value: int) -> bytes:  # some share 4 bytes at the start, some 8, some the end
            return bytes([value // 4] * 4 + [value // 2] * 4 + [value % 4] * 8)

        path = tmp_path_factory.mktemp("keys") / "keys"
        write(path, [key(value) for value in values])
        mask = None if wanted is None else np.array(wanted, np.bool_)
        keys = RowKeys.load(path, mask)
        kept = [
            (row, value)
            for row, value in enumerate(values)
            if wanted is None or (row < len(wanted) and wanted[row])
        ]
        assert len(keys) == len(kept)
        expected = [next((row for row, other in kept if other == value), -1) for value in range(12)]
        assert keys.find(b"".join(map(key, range(12)))).tolist() == expected

    def test_without_a_file_finds_nothing(self, tmp_path):
        keys = RowKeys.load(tmp_path / "none")
        assert keys.find(b"k" * 32).tolist() == [-1, -1]
        assert keys.find(b"").tolist() == []

    def test_tells_what_cannot_be_read(self, tmp_path):
        with pytest.raises(OutputError, match="cannot be read: Is a directory"):
            RowKeys.load(tmp_path)

    def test_a_million(self, tmp_path):
        """In memory that ten million rows may also take, tenfold: 24 bytes a row."""
        num_rows = 2**20
        data = random.Random(1).randbytes(num_rows * KEY_BYTES)
        (tmp_path / "keys").write_bytes(data)
        keys = RowKeys.load(tmp_path / "keys", np.ones(num_rows, np.bool_))
        order = np.random.default_rng(2).permutation(num_rows)
        shuffled = np.frombuffer(data, np.uint64).reshape(-1, 2)[order].tobytes()
        assert np.array_equal(keys.find(shuffled), order)
        other = random.Random(3).randbytes(num_rows * KEY_BYTES)
        assert (keys.find(other) == -1).all()
        arrays = [value for value in vars(keys).values() if isinstance(value, np.ndarray)]
        assert sum(array.nbytes for array in arrays) <= 24 * num_rows
