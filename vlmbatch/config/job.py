"""One whole run: what it reads, where it writes, when it stops."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

from vlmbatch.config.manifest import ManifestConfig
from vlmbatch.config.option import Opt, check_bounds
from vlmbatch.config.part import Part
from vlmbatch.config.sampling import SamplingParams
from vlmbatch.config.session import SessionConfig

_output = partial(Opt, panel="Input and output")
_resume = partial(Opt, panel="Stopping and resuming")


@dataclass(frozen=True, slots=True)
class StdoutDestination:
    """JSONL on standard output."""

    def __str__(self) -> str:
        return "-"


@dataclass(frozen=True, slots=True)
class FileDestination:
    """One file: Parquet, or for OpenAI's requests JSONL."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class FolderDestination:
    """A folder of Parquet files with ``shard_rows`` rows each."""

    path: Path
    shard_rows: int

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class PartDestination:
    """The file of one part of the manifest, in a folder where the others are written too."""

    folder: Path
    part: Part

    @property
    def path(self) -> Path:
        return self.folder / self.part.file_name

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class RemoteDestination:
    """A URL. The answers are written to ``local``, below ``folder``, and put when all are there.

    ``work_dir``: that of --work-dir, absolute; each machine of a cluster has ``folder`` below its
    own.
    """

    url: str
    folder: Path  # of this output alone
    local: FileDestination | FolderDestination | PartDestination
    work_dir: Path | None = None

    def __str__(self) -> str:
        return self.url


DurableDestination = FileDestination | FolderDestination | PartDestination
Destination = StdoutDestination | DurableDestination


WorkDir = Annotated[
    Path | None,
    _output(
        "FOLDER",
        "Where what goes to a URL is made, and kept until it is put; absent: in the user's cache "
        "folder.",
        filled=True,
    ),
]


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """A destination as it is written on the command line."""

    output: Annotated[
        str | None,
        _output(
            "FILE",
            "A .parquet file, a folder of them (with --shard-rows), or - for JSONL on standard "
            "output (default when MANIFEST is -). For OpenAI requests also a .jsonl file. May be a "
            "URL, as s3://BUCKET/out.parquet or hf://datasets/OWNER/NAME.",
            short="-o",
        ),
    ] = None
    work_dir: WorkDir = None
    shard_rows: Annotated[
        int | None, _output("N", "Write a folder of files with N rows each.", minimum=1)
    ] = None
    shard: Annotated[
        str | None,
        _output(
            "I/N",
            "Answer part I of N alone, counted from 0, into the folder that other tasks write "
            "theirs to; auto: as SLURM_ARRAY_TASK_ID or JOB_COMPLETION_INDEX says.",
            filled=True,
        ),
    ] = None
    write_text: Annotated[
        str | None,
        _output(
            "FOLDER",
            "Write each answer to a text file too, called like its row's id: of a/b.jpg "
            "FOLDER/a/b.txt. May be a URL, as s3://BUCKET/texts/.",
            filled=True,
        ),
    ] = None
    ray: Annotated[
        str | None,
        _output(
            "[ADDRESS]",
            "Answer parts of N rows (--shard-rows) on the machines of a Ray cluster, into a folder "
            "that all of them see, or of an object store; ADDRESS: HOST:PORT, local, or auto "
            "(default): RAY_ADDRESS or this machine's.",
            filled=True,
        ),
    ] = None

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, slots=True)
class RunPolicy:
    """What becomes of an earlier run's answers, and what ends this one early."""

    overwrite: Annotated[
        bool,
        _resume(
            "",
            "Start anew and replace the output, or resume where an earlier run ended (default).",
            flag="--overwrite/--resume",
        ),
    ] = False
    retry_failed: Annotated[bool, _resume("", "Answer an earlier run's error rows again.")] = False
    incremental: Annotated[
        bool, _resume("", "When the manifest has changed, keep the answers of unchanged rows.")
    ] = False
    grace_s: Annotated[
        float,
        _resume(
            "TIME",
            "Time for rows under way to finish when the run is stopped.",
            flag="--grace",
            unit="time",
        ),
    ] = 20.0
    deadline_s: Annotated[
        float | None,
        _resume(
            "TIME",
            "Stop after this time, such as 45m or 2h, as on SIGTERM.",
            flag="--deadline",
            unit="time",
        ),
    ] = None
    max_error_rate: Annotated[
        float | None,
        _resume(
            "SHARE",
            "Stop when more than this share of at least 200 rows fail, such as 5%.",
            unit="share",
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class JobConfig:
    """A manifest answered into a destination."""

    session: SessionConfig
    manifest: ManifestConfig
    destination: Destination
    sampling: SamplingParams = field(default_factory=SamplingParams)
    policy: RunPolicy = field(default_factory=RunPolicy)
    text_folder: Path | None = None  # where answers are written as files too
    text_url: str | None = None  # where these are put in the end
    output_url: str | None = None  # where what is made at ``destination`` is put
    queue_rows: int = 128  # prepared rows that may wait for the engine
