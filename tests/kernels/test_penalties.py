"""Penalties and min_p: as transformers' processors have them, each row on its own."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)
from vlmbatch_kernels.penalties import penalise
from vlmbatch_kernels.sampling import sample_tokens

ROWS, VOCAB, LENGTH = 12, 23, 31


def draw(seed: int) -> tuple[Tensor, Tensor]:
    """Logits, and histories in which many tokens and pairs come again."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(ROWS, VOCAB, generator=generator) * 3
    return logits, torch.randint(0, 7, (ROWS, LENGTH), generator=generator)


def penalised(
    logits: Tensor,
    tokens: Tensor,
    num_output: int = 0,
    repetition: float = 1.0,
    presence: float = 0.0,
    frequency: float = 0.0,
    ngram: int = 0,
) -> Tensor:
    rows = len(logits)
    factors = torch.tensor([[repetition], [presence], [frequency]]).expand(3, rows)
    return penalise(logits, tokens, torch.full((rows,), num_output), factors, [ngram] * rows)


def test_repetition_is_as_transformers_has_it() -> None:
    logits, tokens = draw(0)
    for penalty in (0.7, 1.0, 1.3):
        expected = RepetitionPenaltyLogitsProcessor(penalty)(tokens, logits.clone())
        assert torch.equal(penalised(logits, tokens, repetition=penalty), expected)


def test_no_repeated_ngrams_is_as_transformers_has_it() -> None:
    logits, tokens = draw(1)
    for size in (1, 2, 3, 4, LENGTH, LENGTH + 1):
        expected = NoRepeatNGramLogitsProcessor(size)(tokens, logits.clone())
        assert torch.equal(penalised(logits, tokens, ngram=size), expected)


def test_presence_and_frequency_count_generated_tokens() -> None:
    logits, tokens = draw(2)
    counts = torch.stack([row[-9:].bincount(minlength=VOCAB) for row in tokens])
    expected = logits - 0.5 * counts - 1.25 * (counts > 0)
    found = penalised(logits, tokens, num_output=9, presence=1.25, frequency=0.5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert torch.equal(penalised(logits, tokens, presence=1.25, frequency=0.5), logits)


def test_what_is_no_token_counts_nowhere() -> None:
    logits, tokens = draw(3)
    gaps = tokens.clone()
    gaps[:, 3:9] = -1
    gaps[:, 4] = VOCAB  # as an image's place may be numbered
    repeated = penalised(logits, gaps, repetition=1.5)
    left = torch.cat([tokens[:, :3], tokens[:, 9:]], dim=1)
    assert torch.equal(repeated, penalised(logits, left, repetition=1.5))
    end_in_gap = penalised(logits, gaps[:, :9], num_output=5, ngram=2, presence=1.0)
    assert torch.equal(end_in_gap, logits)
    assert torch.equal(penalised(logits, gaps[:, :0], repetition=2.0, ngram=1), logits)


def test_a_row_does_not_depend_on_its_batch() -> None:
    logits, tokens = draw(4)
    tokens[2, :20] = -1
    factors = torch.rand(3, ROWS, generator=torch.Generator().manual_seed(5)) + 0.5
    num_output = torch.arange(ROWS)
    sizes = [0, 2, 3, 1] * 3
    together = penalise(logits, tokens, num_output, factors, sizes)
    for i in range(ROWS):
        row = slice(i, i + 1)
        alone = penalise(
            logits[row], tokens[row], num_output[row], factors[:, row], sizes[i : i + 1]
        )
        assert torch.equal(alone, together[row])


def test_min_p_leaves_what_transformers_leaves() -> None:
    logits, _ = draw(6)
    size = 4000
    for min_p in (0.02, 0.3, 1.0):
        allowed = MinPLogitsWarper(min_p)(torch.empty(0), logits[:1].clone())[0].isfinite()
        tokens = sample_tokens(
            logits[:1].expand(size, -1),
            torch.ones(size),
            torch.zeros(size, dtype=torch.int64),
            torch.ones(size),
            torch.full((size,), 3),
            torch.arange(size),
            torch.full((size,), min_p),
        )
        drawn = tokens.bincount(minlength=VOCAB) > 0
        assert not (drawn & ~allowed).any()
        likely = logits[0].softmax(-1) > 0.01
        assert torch.equal(drawn & likely, allowed & likely)
