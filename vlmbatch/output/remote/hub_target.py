"""A data set of the Hugging Face Hub as output: one commit.

README.md                              the data set card, where there is none, or one of ours
data/train-00000-of-00003.parquet
data/_vlmbatch/run.json                which run it is of
data/_vlmbatch/keys-<id>               digests of its rows, for --incremental
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from vlmbatch.durable.crash_points import crash_point
from vlmbatch.durable.run_paths import RECORD_FILE, work_folder_path
from vlmbatch.durable.run_record import RunRecord, parse_record, record_bytes, recorded_id
from vlmbatch.output.finished import finished_counts
from vlmbatch.output.remote.arrival import install_run
from vlmbatch.output.remote.dataset_card import MARK, Sizes, dataset_card
from vlmbatch.output.remote.target import Found, Seen, unknown_output
from vlmbatch.output.shards import finished_shards, shard_name
from vlmbatch.remote.filesystem import RemotePath
from vlmbatch.remote.hub import HubDataset
from vlmbatch.remote.versions import ChangedError, Sent

DEFAULT_FOLDER = "data"
_CARD = "README.md"
_MARK, _OTHER = "run", "other"
_SHARD = re.compile(r"train-([0-9]{5})-of-([0-9]{5})\.parquet")
_ATTEMPTS = 5  # to commit, while others commit to other places of the data set


class HubTarget:
    """The shards in ``folder`` of a data set, which is created when missing."""

    def __init__(self, path: RemotePath, name: str, folder: str) -> None:
        self.url = path.url
        self._hub = HubDataset(name, path)
        self._folder = folder
        self._work = f"{folder}/_vlmbatch"

    def check_access(self) -> None:
        self._hub.check_access()

    def look(self) -> Found:
        head = self._hub.head()
        return {} if head is None else self._look(head)

    def run_of(self, found: Found) -> str | None:
        return found[_MARK].run_id if _MARK in found else None

    def files(self, output: Path) -> list[Path]:
        return [shard.path for shard in finished_shards(output)]

    def num_bytes(self, found: Found) -> int:
        head = self._hub.head()
        assert head is not None
        files = self._hub.files(head, self._folder).items()
        return sum(size for path, (_, size) in files if self._shard(path))

    def fetch(self, found: Found, output: Path, received: Sent) -> None:
        head = self._hub.head()
        if head is None or self.run_of(found) is None:
            raise unknown_output(self.url)
        files = self._hub.files(head, self._folder)
        record = parse_record(self._hub.read(head, f"{self._work}/{RECORD_FILE}"), self.url)

        def fetch() -> None:
            if output.exists():
                shutil.rmtree(output)
            output.mkdir()
            for path, (_, size) in files.items():
                if (shard := self._shard(path)) is not None:
                    self._hub.fetch(head, path, output / shard_name(int(shard[1])))
                    received(size)
            finished_shards(output)  # all of them, or it says which is missing

        keys = f"{self._work}/keys-{record.id}"
        install_run(output, record, self._hub.read(head, keys) if keys in files else None, fetch)

    def put(self, output: Path, record: RunRecord, found: Found, sent: Sent) -> None:
        for attempt in range(_ATTEMPTS):
            head = self._hub.head() or self._hub.create()
            now = self._look(head)
            if self.run_of(now) == record.id:  # by an earlier call
                return
            if now != found:
                raise ChangedError(f"{self.url} was put by something else meanwhile")
            add = self._additions(output, record, head)
            old = self._hub.files(head, self._folder)
            remove = [path for path in old if path not in add and self._is_ours(path)]
            message = f"{record.num_rows:,} answers of {record.about.get('model')}"
            try:
                self._hub.commit(message, head, add, remove, sent)
            except ChangedError:  # maybe elsewhere in the data set
                if attempt == _ATTEMPTS - 1:
                    raise
            else:
                crash_point("remote.object_put")
                return

    def _look(self, head: str) -> Found:
        files = self._hub.files(head, self._folder)
        mark = f"{self._work}/{RECORD_FILE}"
        if mark in files:
            return {_MARK: Seen(files[mark][0], recorded_id(self._hub.read(head, mark)))}
        return {_OTHER: Seen("files of no run", None)} if files else {}

    def _additions(self, output: Path, record: RunRecord, head: str) -> dict[str, Path | bytes]:
        shards = self.files(output)
        add: dict[str, Path | bytes] = {
            f"{self._folder}/train-{number:05}-of-{len(shards):05}.parquet": path
            for number, path in enumerate(shards)
        }
        add[f"{self._work}/{RECORD_FILE}"] = record_bytes(record)
        keys = work_folder_path(output) / f"keys-{record.id}"
        if keys.exists():
            add[f"{self._work}/{keys.name}"] = keys
        if self._may_write_card(head):
            counts = finished_counts(output)
            add[_CARD] = dataset_card(
                self._hub.name, self._folder, record, counts, Sizes.of(shards)
            )
        return add

    def _may_write_card(self, head: str) -> bool:
        if _CARD not in self._hub.files(head):
            return True
        is_ours = MARK.encode() in self._hub.read(head, _CARD)
        return is_ours and self._folder == DEFAULT_FOLDER

    def _is_ours(self, path: str) -> bool:
        return self._shard(path) is not None or path.startswith(f"{self._work}/keys-")

    def _shard(self, path: str) -> re.Match[str] | None:
        return _SHARD.fullmatch(path.removeprefix(f"{self._folder}/"))
