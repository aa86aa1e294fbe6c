"""Runs one step of the model: images to features, tokens to logits, logits to tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlmbatch.attention.base import AttentionMetadata
from vlmbatch.engine.batch import StepInputs
from vlmbatch.engine.decode_graphs import DecodeGraphs
from vlmbatch.engine.encoder_cache import EncoderCache
from vlmbatch.engine.kv_cache import KVCache
from vlmbatch.engine.logprobs import StepLogprobs
from vlmbatch.engine.prompt_logprobs import PromptLogprobs
from vlmbatch.engine.sampler import sample
from vlmbatch.engine.sequence import Sequence
from vlmbatch.engine.token_masks import TokenMasks
from vlmbatch.models.parallel import SINGLE_DEVICE, ParallelContext
from vlmbatch.models.upload import to_device
from vlmbatch.models.vision_language_model import Embedded, VisionLanguageModel
from vlmbatch.types import TokenLogprob


@dataclass(frozen=True, slots=True)
class ScoredStep:
    """A step whose logits the device may still be computing, and of which no token is sampled yet.

    ``logits``: (n, V), the model's own; ``scores``: the same after penalties, and without ends that
    come too early; ``sums``: (n,) float32, of the hidden states that they come of. None on all
    ranks but the first, and where nothing is sampled. ``prompts``: of prompts whose tokens are
    scored.
    """

    sequences: list[Sequence]
    positions: list[int]  # of the new tokens
    logits: Tensor | None = None
    scores: Tensor | None = None
    sums: Tensor | None = None
    prompts: PromptLogprobs | None = None


@dataclass(slots=True)
class LaunchedStep:
    """A step that the device may still be computing, and the tokens that it samples."""

    sequences: list[Sequence]
    sampled: Tensor  # (n,) int64, on the device
    _copied: Tensor  # the same on the host, once ``_event`` has passed
    _event: torch.cuda.Event | None
    _logprobs: StepLogprobs | None = None
    _prompt_logprobs: PromptLogprobs | None = None

    @classmethod
    def of(
        cls,
        sequences: list[Sequence],
        sampled: Tensor,
        logprobs: StepLogprobs | None = None,
        prompts: PromptLogprobs | None = None,
    ) -> LaunchedStep:
        if sampled.is_cuda:
            copied = sampled.to("cpu", non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            return cls(sequences, sampled, copied, event, logprobs, prompts)
        return cls(sequences, sampled, sampled, None, logprobs, prompts)

    def token_ids(self) -> list[int]:
        """The sampled token of each sequence, -1 where its logits are no numbers.

        Waits for the device.
        """
        if self._event is not None:
            self._event.synchronize()
        token_ids: list[int] = self._copied.tolist()
        return token_ids

    def logprobs(self) -> dict[int, TokenLogprob]:
        """By place in ``sequences``, of those that ask; after ``token_ids``."""
        return {} if self._logprobs is None else self._logprobs.by_row()

    def prompt_logprobs(self) -> Iterable[tuple[Sequence, int, TokenLogprob]]:
        """Of prompt tokens, by sequence and place; after ``token_ids``."""
        return () if self._prompt_logprobs is None else self._prompt_logprobs.told()


class ModelRunner:
    """Holds the model and its caches on one device; ``parallel``: which part of the model."""

    def __init__(
        self,
        model: VisionLanguageModel,
        kv_cache: KVCache,
        device: torch.device,
        cached_image_tokens: int,
        vision_tokens: int,
        parallel: ParallelContext = SINGLE_DEVICE,
    ) -> None:
        self._model = model
        self._parallel = parallel
        self._kv_cache = kv_cache
        self._device = device
        self.encoder_cache = EncoderCache(
            model.encode_images, model.project_features, cached_image_tokens, vision_tokens, device
        )

    @torch.inference_mode()
    def score(
        self,
        inputs: StepInputs,
        before: LaunchedStep | None = None,
        graphs: DecodeGraphs | None = None,
    ) -> ScoredStep:
        """Start computing the logits of a step on the current stream, where ``sample`` goes on.

        ``before``: the step under way, which samples the tokens that are still pending in
        ``inputs``. ``graphs``: of decode steps on this stream, if they are to be used.
        """
        if inputs.copies is not None:
            self._kv_cache.copy(*inputs.copies)
        if before is not None and inputs.pending_tokens:
            self._take_pending(inputs, before)
        hidden = self._hidden(inputs, graphs)
        num_sampled, prompts = len(inputs.sampled), None
        if inputs.scored is not None and self._parallel.rank == 0:
            scored = hidden[num_sampled:]
            prompts = PromptLogprobs.launch(inputs.scored, scored, self._model.compute_logits)
        if not num_sampled or self._parallel.rank > 0:
            return ScoredStep(inputs.sampled, inputs.sample_positions, prompts=prompts)
        scores = logits = self._model.compute_logits(hidden[:num_sampled])
        sums = hidden[:num_sampled].sum(dim=-1, dtype=torch.float32)
        if inputs.penalised is not None:
            scores = inputs.penalised.apply(logits, inputs.input_ids)
        if inputs.early_ends is not None:
            scores = inputs.early_ends.rule_out(scores)
        return ScoredStep(inputs.sampled, inputs.sample_positions, logits, scores, sums, prompts)

    @torch.inference_mode()
    def sample(self, step: ScoredStep, masks: TokenMasks | None = None) -> LaunchedStep:
        """Start sampling the tokens of a step, of those that ``masks`` let each sequence have.

        Where ranks divide the model, the tokens are the first one's choice, which alone tells more.
        """
        logprobs = None
        if step.logits is not None and step.scores is not None:
            requests = [sequence.request for sequence in step.sequences]
            params = [request.sampling for request in requests]
            scores = step.scores
            if masks is not None:
                told = any(p.logprobs is not None for p in params)  # of the model's own logits
                forbids = any(p.no_repeat_ngram_size for p in params)
                scores = masks.apply_(
                    scores.clone() if told else scores, step.logits if forbids else None
                )
            tokens = sample(scores, params, step.positions)
            logprobs = StepLogprobs.launch(step.logits, tokens, requests)
            assert step.sums is not None
            # Where any logit is no number, the token's own is none: see ``sample_tokens``.
            own = step.logits.gather(1, tokens[:, None]).squeeze(1)
            tokens = tokens.where((step.sums + own).isfinite(), -1)
        else:
            tokens = torch.empty(len(step.sequences), dtype=torch.int64, device=self._device)
        if self._parallel.world_size > 1 and step.sequences:
            tokens = self._parallel.broadcast(tokens)
        return LaunchedStep.of(step.sequences, tokens, logprobs, step.prompts)

    def _hidden(self, inputs: StepInputs, graphs: DecodeGraphs | None) -> Tensor:
        """(n, E) of the queries behind which a token is sampled."""
        if graphs is not None and inputs.is_decode:
            # The logits are no part of a graph: each would keep its own, as wide as the vocabulary.
            return graphs.run(inputs, self._decode)
        return self._forward(self._embed(inputs), inputs.positions, inputs.metadata)

    def _decode(self, token_ids: Tensor, positions: Tensor, metadata: AttentionMetadata) -> Tensor:
        return self._forward(self._model.embed(token_ids), positions, metadata)

    def _forward(
        self, embedded: Embedded, positions: Tensor, metadata: AttentionMetadata
    ) -> Tensor:
        """Hidden states of the step's queries, or of those that are sampled."""
        return self._model.forward(embedded, positions, self._kv_cache.layers, metadata)

    def _take_pending(self, inputs: StepInputs, before: LaunchedStep) -> None:
        """Fill in the token ids that ``before`` samples, without waiting for them."""
        row_of = {sequence: row for row, sequence in enumerate(before.sequences)}
        places = [(token, row_of[sequence]) for token, sequence in inputs.pending_tokens]
        tokens, rows = to_device(torch.tensor(places), self._device).T
        # One that has none ends the sequence when it is known: until then any other will do.
        inputs.input_ids[tokens] = before.sampled[rows].clamp(min=0)

    def _embed(self, inputs: StepInputs) -> Embedded:
        if not inputs.image_rows:
            return self._model.embed(inputs.input_ids)
        features = self.encoder_cache.get(
            (rows.image for rows in inputs.image_rows), inputs.upcoming_images
        )
        feature_rows = np.full(len(inputs.input_ids), -1)
        parts = []
        num_rows = 0
        for rows in inputs.image_rows:
            parts.append(features[rows.image.content_hash][rows.first : rows.first + rows.length])
            feature_rows[rows.token : rows.token + rows.length] = np.arange(
                num_rows, num_rows + rows.length
            )
            num_rows += rows.length
        placed = to_device(feature_rows, self._device)
        return self._model.embed(inputs.input_ids, torch.cat(parts), placed)
