"""Engines whose model several processes divide: the logits, tokens and steps of one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_cases import FAMILIES, make_case
from rank_processes import Case, Outcome, answers

from vlmbatch.config import EngineConfig, SamplingParams
from vlmbatch.types import Request

COUNTS = (1, 2, 4)
OF_FOUR = ("llava", "qwen3_vl")  # families; the others on four ranks: make soak
ENGINE = EngineConfig(device="cpu", max_num_seqs=4, max_batched_tokens=40)


def preempted(case: Case) -> Case:
    """Texts that begin together, and grow until there is no room for all of them."""
    growing = SamplingParams(max_tokens=30, ignore_eos=True)
    requests = [Request(index, [10 + index] * 12, growing) for index in range(3)]
    return replace(case, requests=requests, engine=replace(case.engine, kv_cache_tokens=96))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], Any]:
    """By the number of ranks, and the rank: an outcome for each family, or some of them."""
    folder = tmp_path_factory.mktemp("ranks")
    cases = {name: make_case(name, folder / name, ENGINE) for name in FAMILIES}
    cases["preempted"] = preempted(cases["llava"])
    some = {name: cases[name] for name in OF_FOUR}
    return answers({1: cases, 2: cases, 4: some}, folder)


@pytest.mark.parametrize("name", [*FAMILIES, "preempted"])
def test_logits_and_tokens_are_those_of_one_rank(name: str, outcomes: Any) -> None:
    """With prompts in chunks, shared prefixes, and images as pixels and as features."""
    one: Outcome = outcomes[1, 0][name]
    assert one.preemptions if name == "preempted" else one.cached_tokens
    assert len(set(one.tokens.values())) >= 3
    check_equal(name, outcomes, COUNTS[1:] if name in OF_FOUR else COUNTS[1:2])


@pytest.mark.soak
def test_four_ranks_of_every_family(tmp_path: Path) -> None:
    cases = {name: make_case(name, tmp_path / name, ENGINE) for name in FAMILIES}
    outcomes = answers({1: cases, 4: cases}, tmp_path)
    for name in FAMILIES:
        check_equal(name, outcomes, (4,))


def check_equal(name: str, outcomes: Any, counts: tuple[int, ...]) -> None:
    one: Outcome = outcomes[1, 0][name]
    for count in counts:
        first: Outcome = outcomes[count, 0][name]
        assert len(first.logits) == len(one.logits)
        for ours, expected in zip(first.logits, one.logits, strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
        for rank in range(count):
            outcome: Outcome = outcomes[count, rank][name]
            assert outcome.tokens == one.tokens
            assert outcome.preemptions == one.preemptions
            assert outcome.cached_tokens == one.cached_tokens
            assert bool(outcome.logits) == (rank == 0), "one rank samples for all"


def test_ranks_hold_the_keys_and_values_of_their_own_heads(outcomes: Any) -> None:
    # Two heads: of four ranks, two hold each.
    sizes = [outcomes[count, 0]["qwen3_vl"].kv_cache for count in COUNTS]
    assert sizes == [sizes[0], sizes[0] // 2, sizes[0] // 2]


def test_ranks_that_differ_are_refused_by_all(outcomes: Any) -> None:
    told = {outcomes[4, rank]["refusal"] for rank in range(4)}
    assert told == {
        "ranks cannot divide the model, as they differ in the device: "
        "H200 of rank 0, H100 of rank 1"
    }


def test_ranks_find_out_what_all_of_them_have(outcomes: Any) -> None:
    assert [outcomes[4, rank]["least"] for rank in range(4)] == [7] * 4
