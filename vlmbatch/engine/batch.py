"""One step's chunks as flat tensors: token ids, positions, where keys and values go.

T: tokens of the step. B: sequences of the step. Sequences with a single token come first,
where it pays with those that share a prefix beside each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlmbatch.attention.base import AttentionMetadata, SampledQueries, SharedPrefixes
from vlmbatch.engine.early_ends import EarlyEnds
from vlmbatch.engine.penalties import PenalisedRows
from vlmbatch.engine.prompt_logprobs import ScoredTokens
from vlmbatch.engine.sequence import Sequence
from vlmbatch.engine.shared_prefix import find_shared_prefixes, sort_by_prefix
from vlmbatch.engine.step import ScheduledChunk
from vlmbatch.models.upload import to_device
from vlmbatch.types import ImageInput


@dataclass(frozen=True, slots=True)
class ImageRows:
    """Feature rows ``first`` to ``first + length`` of an image go to tokens from ``token``."""

    image: ImageInput
    first: int
    length: int
    token: int


@dataclass(slots=True)
class StepInputs:
    """What the model runner needs of a step.

    ``input_ids``: (T,) int64; 0 for pending tokens.
    ``positions``: (T,) or (3, T) int64.
    ``sampled``: the sequences of which a token is sampled, in the order of the queries that
    ``metadata.sampled`` names (all, where it names none).
    ``sample_positions``: the positions of the new tokens. ``penalised``: those of ``sampled`` whose
    new token depends on which came before. ``early_ends``: new tokens that are ruled out.
    ``scored``: prompt tokens to tell of, whose queries come behind those of ``sampled``.
    ``image_rows``: which features replace which token embeddings.
    ``pending_tokens``: tokens among the T that the previous step samples, with their sequences.
    ``copies``: granules of the pool to copy first, sources and targets, both (n,) int64.
    ``upcoming_images``: of sequences that will be admitted soon.
    """

    input_ids: Tensor
    positions: Tensor
    metadata: AttentionMetadata
    sampled: list[Sequence]
    sample_positions: list[int]
    penalised: PenalisedRows | None
    early_ends: EarlyEnds | None
    scored: ScoredTokens | None
    image_rows: list[ImageRows]
    pending_tokens: list[tuple[int, Sequence]]
    copies: tuple[Tensor, Tensor] | None
    upcoming_images: Iterable[ImageInput] = ()

    @property
    def is_decode(self) -> bool:
        """Whether every sequence computes a single text token and samples the next."""
        metadata = self.metadata
        plain = not self.image_rows and self.positions.ndim == 1
        return plain and metadata.sampled is None and metadata.num_decodes == len(self.sampled)


def build_step_inputs(
    chunks: Seq[ScheduledChunk],
    block_size: int,
    granule: int,
    device: torch.device,
    share_prefixes: bool = False,
) -> StepInputs:
    """Lay the chunks of a step out as tensors on ``device``.

    ``share_prefixes``: look for prefixes that sequences with a single token share.
    """
    singles = [chunk for chunk in chunks if chunk.length == 1]
    if share_prefixes:
        singles = sort_by_prefix(singles, granule)
    chunks = singles + [chunk for chunk in chunks if chunk.length != 1]
    lengths = [chunk.length for chunk in chunks]
    ends = [chunk.start + chunk.length for chunk in chunks]
    num_tokens = sum(lengths)
    offsets = np.zeros(len(chunks) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    starts = np.fromiter((chunk.start for chunk in chunks), np.int64, len(chunks))
    positions = np.arange(num_tokens) + np.repeat(starts - offsets[:-1], lengths)

    tables = _block_tables(chunks)
    owner = np.repeat(np.arange(len(chunks)), lengths)
    slots = tables[owner, positions // block_size].astype(np.int64) * granule
    slots += positions % block_size
    token_ids, pending = _token_ids(chunks)
    image_rows: list[ImageRows] = []
    for chunk, first_token in zip(chunks, offsets.tolist(), strict=False):
        image_rows += _image_rows(chunk, first_token)

    metadata = AttentionMetadata(
        cu_seqlens_q=to_device(offsets, device),
        seqlens_k=to_device(np.array(ends, np.int32), device),
        block_table=to_device(tables, device),
        slot_mapping=to_device(slots, device),
        query_lens=lengths,
        seqlens_k_host=ends,
        num_decodes=len(singles),
        max_seqlen_q=max(lengths),
        max_seqlen_k=max(ends),
        shared=_shared_prefixes(singles, granule, device) if share_prefixes else None,
    )
    sampling = [i for i, chunk in enumerate(chunks) if chunk.needs_sampling]
    scored = ScoredTokens.of(chunks)
    if len(sampling) < num_tokens or scored is not None:
        queries = [(i, chunks[i].length - 1) for i in sampling]
        queries += [] if scored is None else scored.queries
        metadata.sampled = _sampled_queries(metadata, tables, chunks, offsets, queries, device)
    return StepInputs(
        input_ids=to_device(np.array(token_ids, np.int64), device),
        positions=to_device(_model_positions(chunks, positions, offsets), device),
        metadata=metadata,
        sampled=[chunks[i].sequence for i in sampling],
        sample_positions=[ends[i] for i in sampling],
        penalised=PenalisedRows.of(
            [chunks[i] for i in sampling], [int(offsets[i + 1]) - 1 for i in sampling], device
        ),
        early_ends=EarlyEnds.of(
            {
                row: chunks[i].sequence.stop_token_ids
                for row, i in enumerate(sampling)
                if ends[i] < chunks[i].sequence.earliest_end
            }
        ),
        pending_tokens=pending,
        scored=scored,
        image_rows=image_rows,
        copies=_copies(chunks, device),
    )


def _block_tables(chunks: Seq[ScheduledChunk]) -> NDArray[np.int32]:
    """(B, most blocks) first granule of each of a sequence's blocks, padded with zeros."""
    tables = np.zeros((len(chunks), max(len(chunk.sequence.blocks) for chunk in chunks)), np.int32)
    for row, chunk in zip(tables, chunks, strict=True):
        blocks = chunk.sequence.blocks
        row[: len(blocks)] = [block.start for block in blocks]
    return tables


def _token_ids(chunks: Seq[ScheduledChunk]) -> tuple[list[int], list[tuple[int, Sequence]]]:
    """``input_ids`` and ``pending_tokens`` of ``StepInputs``."""
    token_ids: list[int] = []
    pending: list[tuple[int, Sequence]] = []
    for chunk in chunks:
        sequence = chunk.sequence
        end = chunk.start + chunk.length
        token_ids += sequence.token_ids[chunk.start : end]
        if end > sequence.num_known_tokens:
            assert end == sequence.num_known_tokens + 1, "two steps are under way at most"
            token_ids[-1] = 0
            pending.append((len(token_ids) - 1, sequence))
    return token_ids, pending


def _shared_prefixes(
    singles: Seq[ScheduledChunk], granule: int, device: torch.device
) -> SharedPrefixes | None:
    found = find_shared_prefixes(singles, granule)
    if found is None:
        return None
    lens, tiles = (np.array(numbers, np.int32) for numbers in (found.lens, found.tiles))
    return SharedPrefixes(to_device(lens, device), to_device(tiles, device))


def _sampled_queries(
    metadata: AttentionMetadata,
    tables: NDArray[np.int32],
    chunks: Seq[ScheduledChunk],
    offsets: NDArray[np.int32],
    queries: list[tuple[int, int]],
    device: torch.device,
) -> SampledQueries:
    """``queries``, by chunk and place in it, each as a sequence of one query."""
    owners = [i for i, _ in queries]
    ends = [chunks[i].start + place + 1 for i, place in queries]
    tokens = np.array([offsets[i] + place for i, place in queries], np.int64)
    return SampledQueries(
        to_device(tokens, device),
        AttentionMetadata(
            cu_seqlens_q=to_device(np.arange(len(queries) + 1, dtype=np.int32), device),
            seqlens_k=to_device(np.array(ends, np.int32), device),
            block_table=to_device(tables[owners], device),
            slot_mapping=metadata.slot_mapping[:0],
            query_lens=[1] * len(queries),
            seqlens_k_host=ends,
            num_decodes=len(queries),
            max_seqlen_q=1,
            max_seqlen_k=max(ends, default=0),
        ),
    )


def _copies(chunks: Seq[ScheduledChunk], device: torch.device) -> tuple[Tensor, Tensor] | None:
    copies = [chunk.copy for chunk in chunks if chunk.copy is not None]
    if not copies:
        return None
    source = np.concatenate([np.arange(c.source, c.source + c.count) for c in copies])
    target = np.concatenate([np.arange(c.target, c.target + c.count) for c in copies])
    return to_device(source, device), to_device(target, device)


def _image_rows(chunk: ScheduledChunk, first_token: int) -> list[ImageRows]:
    """The parts of image spans that a chunk covers."""
    request = chunk.sequence.request
    rows = []
    for span in request.image_spans:
        start = max(span.start, chunk.start)
        end = min(span.start + span.length, chunk.start + chunk.length)
        if start < end:
            first = span.offset + start - span.start
            token = first_token + start - chunk.start
            rows.append(ImageRows(request.images[span.image], first, end - start, token))
    return rows


def _model_positions(
    chunks: Seq[ScheduledChunk], plain: NDArray[np.int64], offsets: NDArray[np.int32]
) -> NDArray[np.int64]:
    """Positions as the model counts them: (T,), or (3, T) where a prompt's have three rows.

    After the prompt all rows are equal (Qwen2-VL, arXiv:2409.12191, section 2.1): a decode step has
    one.
    """
    requests = [chunk.sequence.request for chunk in chunks]
    # Behind a prompt they continue from next_position, which may be below its number of tokens.
    ahead = [
        0 if request.next_position is None else request.next_position - len(request.token_ids)
        for request in requests
    ]
    result = plain + np.repeat(ahead, np.diff(offsets)) if any(ahead) else plain
    for request, chunk, first, shift in zip(
        requests, chunks, offsets.tolist(), ahead, strict=False
    ):
        num_own = min(len(request.token_ids) - chunk.start, chunk.length)
        if num_own <= 0 or (request.positions is None and not shift):
            continue
        rows = slice(first, first + num_own)
        if request.positions is None:
            own = plain[rows]
        else:
            own = request.positions[..., chunk.start : chunk.start + num_own]
        if own.ndim == 2 and result.ndim == 1:
            result = np.tile(result, (3, 1))
        elif result is plain:
            result = plain.copy()
        result[..., rows] = own
    return result
