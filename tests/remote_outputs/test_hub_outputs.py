"""Data sets of the Hub as outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from hub_commits import Dataset, Hub, RefusalError, hub_server
from huggingface_hub import constants
from remote_job import NUM_ROWS, RemoteJob

from vlmbatch.errors import UsageError
from vlmbatch.remote.errors import RemoteError, RemoteForbiddenError

NAME = "ann/answers"
SHARDS = [f"data/train-0000{number}-of-00003.parquet" for number in range(3)]
NewJob = Callable[..., RemoteJob]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server() as server:
        resolve = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", resolve)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_testing")
        yield server


@pytest.fixture
def new_job(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NewJob:
    def new(machine: str = "here", place: str = NAME) -> RemoteJob:
        return RemoteJob(f"hf://datasets/{place}", tmp_path / machine, monkeypatch)

    return new


def shards(job: RemoteJob) -> list[bytes]:
    return [path.read_bytes() for path in sorted(job.output.glob("part-*"))]


def test_a_new_data_set(new_job: NewJob, hub: Hub) -> None:
    job = new_job()
    job()
    dataset = hub.datasets[NAME]
    assert dataset.private and len(dataset.commits) == 2  # the first is the Hub's
    assert [dataset.files[path] for path in SHARDS] == shards(job)
    _, head, card = dataset.files["README.md"].decode().split("---\n")
    fields = yaml.safe_load(head)
    assert fields["configs"][0]["data_files"] == [
        {"split": "train", "path": "data/train-*.parquet"}
    ]
    assert fields["dataset_info"]["splits"][0]["num_examples"] == NUM_ROWS
    assert fields["dataset_info"]["download_size"] == sum(map(len, shards(job)))
    assert f"| rows | {NUM_ROWS} |" in card and "| error `prompt_invalid` | 1 |" in card
    assert job().nothing_to_do and len(dataset.commits) == 2
    there = new_job("there")
    assert there().nothing_to_do and shards(there) == shards(job)
    there(overwrite=True)
    assert [dataset.files[path] for path in SHARDS] == shards(there)
    assert sum("keys" in path for path in dataset.files) == 0


def test_files_of_no_run_are_left_alone(new_job: NewJob, hub: Hub) -> None:
    dataset = hub.datasets[NAME] = Dataset(private=False)
    dataset.commit({"data/rows.csv": b"a", "README.md": b"# By hand"})
    before = dataset.files
    with pytest.raises(UsageError, match="no run on it is known"):
        new_job()()
    assert dataset.files == before
    job = new_job(place=f"{NAME}/captions")
    job()
    captions = sorted(path for path in dataset.files if path.startswith("captions/train"))
    assert [dataset.files[path] for path in captions] == shards(job)
    assert before.items() < dataset.files.items()


def test_commits_that_come_meanwhile(new_job: NewJob, hub: Hub) -> None:
    """One elsewhere in the data set is followed; one in our place is not replaced."""
    dataset = hub.datasets[NAME] = Dataset()

    def elsewhere() -> None:
        hub.before_commit = lambda: None
        dataset.commit({"notes.txt": b"notes"})

    hub.before_commit = elsewhere
    here, there = new_job(), new_job("there")
    here()
    assert {"notes.txt", *SHARDS} < dataset.files.keys()

    def in_our_place() -> None:
        hub.before_commit = lambda: None
        there(overwrite=True)

    hub.before_commit = in_our_place
    with pytest.raises(UsageError, match="was put by another run, or something else"):
        here(overwrite=True)
    assert [dataset.files[path] for path in SHARDS] == shards(there)


def test_what_was_sent_is_not_sent_again(new_job: NewJob, hub: Hub) -> None:
    job = new_job()

    def cut_off() -> None:
        if len(hub.uploads) == 2:
            raise RefusalError(400, "Come back later")

    hub.before_upload = cut_off
    with pytest.raises(RemoteError, match="run the same command again to put them"):
        job()
    assert len(hub.uploads) == 2 and not {*SHARDS} & hub.datasets[NAME].files.keys()
    hub.before_upload = lambda: None
    job()
    assert job.computed == 0 and len(hub.uploads) == 3
    assert [hub.datasets[NAME].files[path] for path in SHARDS] == shards(job)


@pytest.mark.parametrize(
    ("place", "token", "error", "message"),
    [
        (NAME, None, UsageError, "set HF_TOKEN"),
        ("ben/answers", "hf_testing", UsageError, "HF_TOKEN is of ann, who cannot create one of"),
        ("ben/there", "hf_testing", RemoteForbiddenError, "access is denied"),
    ],
)
def test_refused_before_any_work(
    place: str,
    token: str | None,
    error: Any,
    message: str,
    new_job: NewJob,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.datasets["ben/there"] = Dataset()
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
    job = new_job(place=place)
    with pytest.raises(error, match=message):
        job()
    assert job.computed == 0
