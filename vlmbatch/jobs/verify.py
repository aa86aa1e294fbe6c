"""Some rows of an output answered again, each alone: is the answer the same?"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from vlmbatch import __version__
from vlmbatch.config import (
    EngineConfig,
    FileDestination,
    JobConfig,
    ManifestConfig,
    SamplingParams,
    SessionConfig,
)
from vlmbatch.config.option import build
from vlmbatch.config.part import Part
from vlmbatch.durable.run_paths import RECORD_FILE, work_folder_path
from vlmbatch.durable.run_record import RunRecord, read_record
from vlmbatch.errors import UsageError
from vlmbatch.hf.checkpoint import HfConfig
from vlmbatch.images.loading.loader import ImageLoader
from vlmbatch.jobs.fingerprint import fingerprint, run_settings
from vlmbatch.manifest.sample import sampled_rows
from vlmbatch.models.processor import Processor
from vlmbatch.output.answers import Answers, open_answers
from vlmbatch.output.changes import explained
from vlmbatch.output.parts import parts_named
from vlmbatch.replicas.replica import Completion, Replica, RowFailure
from vlmbatch.session.load import composed, load_engine, load_with_transformers
from vlmbatch.session.open import Inputs, open_images, open_inputs, open_model
from vlmbatch.stages.answer import Answer, to_result
from vlmbatch.stages.prepare import prepare
from vlmbatch.stats import RunStats
from vlmbatch.types import Result, Row

Texts = Sequence[str]  # all answers of a row

_NONE = "(no answer)"


@dataclass(frozen=True, slots=True)
class Difference:
    """A row that is answered otherwise now. ``by``: what answered it again. ``answer``: which of
    several is the first that differs, from 1; None of a row that has one."""

    row: int
    id: str
    by: str
    answer: int | None
    stored: str
    again: str


@dataclass(frozen=True, slots=True)
class Verified:
    """``rows`` were answered again by each of ``engines``. ``skipped``: why Hugging Face did not
    answer, where it was asked to."""

    rows: int
    answered: int  # rows of the output that have an answer
    engines: tuple[str, ...]
    differences: tuple[Difference, ...]
    skipped: str | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def verify(
    output: Path, num_rows: int, stats: RunStats, *, seed: int = 0, huggingface: bool = False
) -> Verified:
    """Answer ``num_rows`` rows of ``output`` again, spread over those that have an answer.

    Each is alone in the engine, with no prefix of another's in its cache. ``huggingface``: also by
    the checkpoint's own class in transformers.

    Raises:
        UsageError: the output is not finished, or its run cannot be repeated: its work folder,
            model or manifest is not there or is another.
    """
    record = _record(output)
    session, manifest, sampling = _configurations(output, record)
    stats.stage = "reading the output"
    with open_answers(output) as answers:
        stored, answered = _stored(answers, num_rows, seed)
    stats.stage = "reading the manifest"
    inputs = open_inputs(session, manifest, sampling, stats=stats)
    job = JobConfig(session, manifest, FileDestination(output), sampling)
    _check_settings(output, record, run_settings(job, inputs, inputs.manifest.scan()))
    last = max(stored, default=-1)
    rows = [row for row in islice(inputs.manifest.rows(), last + 1) if row.index in stored]
    engines, differences = [], []
    skipped = None
    for by, again in _answered_again(session, inputs, rows, stats, huggingface=huggingface):
        if isinstance(again, str):
            skipped = again
            continue
        engines.append(by)
        differences += [
            difference
            for row, now in zip(rows, again, strict=True)
            if (difference := _difference(row, by, stored[row.index], _texts(now))) is not None
        ]
    stats.finish()
    return Verified(len(rows), answered, tuple(engines), tuple(differences), skipped)


def _answered_again(
    session: SessionConfig,
    inputs: Inputs,
    rows: Sequence[Row],
    stats: RunStats,
    *,
    huggingface: bool,
) -> Iterator[tuple[str, list[Result] | str]]:
    """The results of each engine, one loaded at a time; in place of them why there are none."""
    if isinstance(inputs.model, HfConfig):
        yield "transformers", _by_huggingface(session, inputs, rows, stats)
        return
    yield "vlmbatch", _by_engine(session, inputs, rows, stats)
    if not huggingface:
        return
    if any(row.sampling is not None and row.sampling.choices for row in rows):
        yield "transformers", "--choices cannot be used where transformers answers"
        return
    gc.collect()  # or two models would have to fit
    ours = session.engine
    engine = EngineConfig(
        engine="transformers",
        dtype=ours.dtype,
        device=ours.device,
        quantize=ours.quantize,  # which is refused there, and so is the next
        kv_cache_dtype=ours.kv_cache_dtype,
        max_model_len=ours.max_model_len,
    )
    other = replace(session, engine=engine)
    try:
        opened = open_model(other)
        theirs = Inputs(opened.folder, opened.model, opened.processor, inputs.manifest, False)
        results = _by_huggingface(other, theirs, rows, stats)
    except UsageError as error:
        yield "transformers", str(error)
        return
    yield "transformers", results


def _by_engine(
    session: SessionConfig, inputs: Inputs, rows: Sequence[Row], stats: RunStats
) -> list[Result]:
    from vlmbatch.replicas.local import LocalReplica

    alone = replace(
        session.engine,
        gpus=None,
        replicas=None,
        tensor_parallel=1,
        max_num_seqs=1,
        enable_prefix_caching=False,
    )
    session = replace(session, engine=alone)
    stats.stage, stats.rows_total, stats.rows_done = "loading the model", len(rows), 0
    engine = load_engine(session, inputs)
    replica = LocalReplica(engine, inputs.processor.tokenizer)
    return _one_by_one(session, inputs, replica, rows, stats)


def _by_huggingface(
    session: SessionConfig, inputs: Inputs, rows: Sequence[Row], stats: RunStats
) -> list[Result]:
    stats.stage, stats.rows_total, stats.rows_done = "loading with transformers", len(rows), 0
    session = replace(session, engine=replace(session.engine, max_num_seqs=1))
    with closing(load_with_transformers(session, inputs)) as replica:
        return _one_by_one(session, inputs, replica, rows, stats)


def _one_by_one(
    session: SessionConfig,
    inputs: Inputs,
    replica: Replica,
    rows: Sequence[Row],
    stats: RunStats,
) -> list[Result]:
    stats.stage, stats.work_started = "answering rows alone", time.monotonic()
    results = []
    replica = composed(replica, inputs.model, inputs.processor.tokenizer)
    with closing(open_images(session, inputs, 1)) as images:
        for row in rows:
            results.append(_answer(row, inputs.processor, images, replica))
            stats.rows_done += 1
    return results


def _answer(row: Row, processor: Processor, images: ImageLoader, replica: Replica) -> Result:
    """The row's result, with nothing else under way."""
    prepared = prepare(row, processor, images, lambda row: None)
    request = prepared.request
    if request is None:
        return to_result(Answer(prepared.row, error=prepared.error), processor.tokenizer)
    replica.submit(request)
    replica.expect_no_more()
    while True:
        for event in replica.poll():
            if isinstance(event, RowFailure):
                return Result.from_error(row, event.error)
            if isinstance(event, Completion):
                return to_result(Answer.of(prepared.row, request, event), processor.tokenizer)


def _difference(row: Row, by: str, stored: Texts, again: Texts) -> Difference | None:
    several = len(stored) > 1
    again = again[: len(stored)]  # a table of a run without --n has the first of a request's alone
    for number, (one, other) in enumerate(zip_longest(stored, again, fillvalue=_NONE), 1):
        if one != other:
            return Difference(row.index, row.id, by, number if several else None, one, other)
    return None


def _texts(result: Result) -> Texts:
    if result.error_code is not None:
        return (f"({result.error_code}: {result.error_message})",)
    assert result.text is not None
    texts: Texts = result.details.get("texts", (result.text,))
    return texts


def _stored(answers: Answers, num_rows: int, seed: int) -> tuple[dict[int, Texts], int]:
    """Texts by row, of rows that have one; and how many there are. A byte a row is held."""
    ok = [
        results["status"].to_numpy(zero_copy_only=False) == "ok"
        for results, _ in answers.blocks(["status"])
    ]
    answered = np.flatnonzero(np.concatenate(ok)) if ok else np.empty(0, np.int64)
    chosen = answered[sampled_rows(len(answered), num_rows, seed)]
    texts = {row.result["row_index"]: row.texts for row in answers.rows(chosen)}
    return texts, len(answered)


def _record(output: Path) -> RunRecord:
    place = output
    if output.is_dir() and (parts := parts_named(output)):
        place = output / Part(0, parts[0].count).file_name
    record = read_record(work_folder_path(place) / RECORD_FILE)
    if record is None:
        raise UsageError(
            f"{output}: no run on it is known, so that it cannot be repeated: its work folder "
            f"{work_folder_path(place)} is not there"
        )
    return record


def _configurations(
    output: Path, record: RunRecord
) -> tuple[SessionConfig, ManifestConfig, SamplingParams]:
    """What the run was given, as its record has it."""
    options = record.about.get("options")
    if options is None:
        reason = "as it was merged of parts without work folders"
        if record.version == __version__:
            reason += ": verify the folder of its parts, or answer anew"
        else:
            reason += f", or written by another version of vlmbatch ({record.version})"
        raise UsageError(f"{output}: which options its run had is not known, {reason}")
    session, manifest, sampling = options
    found = build(ManifestConfig, {**manifest, "manifest": record.about["manifest"]}, "argument")
    if found.source == "-":
        raise UsageError(f"{output}: its rows came on standard input, and are not there any more")
    return (
        build(SessionConfig, session, "argument"),
        found,
        build(SamplingParams, sampling, "argument"),
    )


def _check_settings(output: Path, record: RunRecord, settings: dict[str, Any]) -> None:
    """Refuse to repeat a run whose manifest or model is another now."""
    if fingerprint(settings) == record.fingerprint:
        return
    lines = "".join(f"\n  {explained(change)}" for change in record.changes(settings))
    raise UsageError(
        f"{output}: what its run was given is not there any more:{lines}\nRestore it to verify the "
        "answers; or run again, and see with `vlmbatch compare` what differs"
    )
