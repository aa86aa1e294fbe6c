"""Data sets of the Hugging Face Hub: files of a revision, and commits that follow a known one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vlmbatch.errors import UsageError
from vlmbatch.remote.errors import RemoteError, RemoteFailedError, RemoteMissingError, http_status
from vlmbatch.remote.filesystem import RemotePath
from vlmbatch.remote.versions import ChangedError

_KIND: Any = {"repo_type": "dataset"}
_MOVED_ON = (409, 412)  # what the Hub answers where the parent is no longer the last commit


class HubDataset:
    """The data set ``OWNER/NAME``. ``path``, of it or in it, translates what goes wrong.

    Raises:
        RemoteError: by every method, when the Hub refuses or cannot be reached.
    """

    def __init__(self, name: str, path: RemotePath) -> None:
        import huggingface_hub

        self.name = name
        self.url = path.url
        self._path = path
        self._api = huggingface_hub.HfApi()

    def check_access(self) -> None:
        """Find out whether something may be committed, or the data set may be created.

        Raises:
            UsageError: there is no token, or it is of somebody else.
        """
        from huggingface_hub import get_token

        if get_token() is None:
            raise UsageError(f"{self.url}: the Hub takes files of people it knows: set HF_TOKEN")
        if self.head() is not None:
            with self._errors():
                self._api.auth_check(self.name, write=True, **_KIND)
            return
        with self._errors():
            user = self._api.whoami()
        owner = self.name.partition("/")[0]
        owners = [user["name"], *(org["name"] for org in user.get("orgs", ()))]
        if owner not in owners:
            raise UsageError(
                f"{self.url}: there is no such data set, and HF_TOKEN is of {owners[0]}, who "
                f"cannot create one of {owner}"
            )

    def head(self) -> str | None:
        """The last commit; None where there is no such data set."""
        try:
            with self._errors():
                sha: str | None = self._api.repo_info(self.name, **_KIND).sha
        except RemoteMissingError:
            return None
        return sha

    def create(self) -> str:
        """Create the data set, for its owner alone; its first commit."""
        with self._errors():
            self._api.create_repo(self.name, private=True, exist_ok=True, **_KIND)
        head = self.head()
        if head is None:
            raise RemoteFailedError(f"{self.url}: created, and not yet there")
        return head

    def files(self, revision: str, folder: str | None = None) -> dict[str, tuple[str, int]]:
        """All files below ``folder``, or of all: by path the digest of the content, and bytes."""
        try:
            with self._errors():
                entries = list(
                    self._api.list_repo_tree(
                        self.name, folder, recursive=True, revision=revision, **_KIND
                    )
                )
        except RemoteMissingError:
            return {}
        return {entry.path: (entry.blob_id, entry.size) for entry in entries if _is_file(entry)}

    def read(self, revision: str, path: str) -> bytes:
        """The content of a small file."""
        with TemporaryDirectory() as folder:
            target = Path(folder) / "file"
            self.fetch(revision, path, target)
            return target.read_bytes()

    def fetch(self, revision: str, path: str, target: Path) -> None:
        """Write a file of the data set to ``target``."""
        with TemporaryDirectory(dir=target.parent, prefix=".fetched-") as folder, self._errors():
            fetched = self._api.hf_hub_download(
                self.name, path, revision=revision, local_dir=folder, **_KIND
            )
            Path(fetched).replace(target)

    def commit(
        self,
        message: str,
        parent: str,
        add: Mapping[str, Path | bytes],
        remove: Sequence[str],
        sent: Callable[[int], None],
    ) -> None:
        """Add and remove files, all at once, where ``parent`` is the last commit.

        The content of large files is sent first, and not again by a later call.

        Raises:
            ChangedError: it no longer is.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        operations: list[Any] = []
        for path, content in add.items():
            source = content if isinstance(content, bytes) else str(content)
            operation = CommitOperationAdd(path_in_repo=path, path_or_fileobj=source)
            if isinstance(content, Path):
                with self._errors():
                    self._api.preupload_lfs_files(
                        self.name, [operation], free_memory=False, **_KIND
                    )
                sent(content.stat().st_size)
            operations.append(operation)
        operations += [CommitOperationDelete(path_in_repo=path) for path in remove]
        try:
            with self._errors():
                self._api.create_commit(
                    self.name, operations, commit_message=message, parent_commit=parent, **_KIND
                )
        except RemoteError as error:
            if http_status(error) in _MOVED_ON:
                raise ChangedError(f"{self.url} has a commit that came meanwhile") from error
            raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            with self._path.errors(), _without_bars():
                yield
        except RuntimeError as error:  # of an upload, whatever stopped it
            raise RemoteFailedError(f"{self.url}: {error.__cause__ or error}") from error
        except RemoteMissingError as error:
            if isinstance(error.__cause__, LocalEntryNotFoundError):  # not reached, and not cached
                raise RemoteFailedError(f"{self.url}: {error.__cause__}") from error
            raise


@contextmanager
def _without_bars() -> Iterator[None]:
    """Hide the library's progress bars: there is one of ours."""
    from huggingface_hub import utils

    if utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


def _is_file(entry: Any) -> bool:
    return hasattr(entry, "blob_id")
