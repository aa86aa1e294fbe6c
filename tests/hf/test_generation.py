"""Rows of all settings in one batch of a real model: each ends and samples as it would alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_case import MAX_TOKENS, ROWS, Case, make_images
from hf_checkpoints import EOS_ID, KINDS
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor
from vlmbatch_kernels.sampling import sample_tokens

from vlmbatch.config import EngineConfig, SamplingParams, SessionConfig
from vlmbatch.hf.failures import BatchFailedError
from vlmbatch.hf.padding import pads_safely
from vlmbatch.hf.processor import HfProcessor
from vlmbatch.hf.replica import HfReplica
from vlmbatch.hf.row import RowUnderWay
from vlmbatch.images.decode import decode_image
from vlmbatch.replicas.replica import Completion, Event, RowFailure
from vlmbatch.session.load import load_with_transformers
from vlmbatch.session.open import ModelInputs, open_model
from vlmbatch.types import ImageRef, Request, Row

SAMPLED = SamplingParams(max_tokens=6, temperature=0.9, top_k=40, top_p=0.95)


class Loaded:
    """A model of one kind, with requests for it."""

    def __init__(self, folder: Path, images: list[Path]) -> None:
        KINDS["gemma3"].make(folder)
        self.case = Case(folder, KINDS["gemma3"], images)
        self.session = SessionConfig(str(folder), engine=EngineConfig(max_num_seqs=16))
        self.inputs: ModelInputs = open_model(self.session)
        self.replica: HfReplica = load_with_transformers(self.session, self.inputs)

    def request(self, index: int, sampling: SamplingParams) -> Request:
        row = ROWS[index % len(ROWS)]
        processor = self.inputs.processor
        refs = tuple(ImageRef(str(self.case.images[image])) for image in row.images)
        tokens = processor.tokenize(Row(index, "", 1, "m", prompt=row.prompt, images=refs))
        assert processor.images is not None
        pixels = [
            processor.images.process(decode_image(ref, self.session.image_limits)) for ref in refs
        ]
        encoded = processor.encode(tokens, pixels)
        return Request(index, encoded.token_ids, sampling, inputs=encoded.inputs)

    def events(self, requests: Sequence[Request]) -> dict[int, Event]:
        for request in requests:
            self.replica.submit(request)
        found: dict[int, Event] = {}
        while self.replica.num_unfinished:
            found |= {event.index: event for event in self.replica.poll()}
        return found

    def answers(self, requests: Sequence[Request]) -> dict[int, Completion]:
        found = {}
        for index, event in self.events(requests).items():
            assert isinstance(event, Completion), event
            found[index] = event
        return found


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("model")
    made = Loaded(folder, make_images(tmp_path_factory.mktemp("images")))
    yield made
    made.replica.close()


def test_a_seeded_row_is_the_same_in_every_batch(loaded: Loaded) -> None:
    params = [replace(SAMPLED, seed=seed) for seed in range(6)]
    params[2] = SamplingParams(max_tokens=6)
    params[4] = replace(params[4], temperature=5.0, top_k=0, top_p=1.0)
    requests = [loaded.request(index, each) for index, each in enumerate(params)]
    together = loaded.answers(requests)
    for request in requests:
        alone = loaded.answers([request])[request.index]
        assert alone.token_ids == together[request.index].token_ids
    other = loaded.answers([replace(requests[4], sampling=replace(params[4], seed=99))])
    assert other[4].token_ids != together[4].token_ids


def test_sampled_tokens_are_those_of_a_plain_loop(loaded: Loaded) -> None:
    """Without a cache or a batch: the whole sequence through the model for each token."""
    params = replace(SAMPLED, seed=7)
    requests = [loaded.request(index, params) for index in (1, 5)]
    found = loaded.answers(requests)
    for request in requests:
        tokens = list(request.token_ids)
        while len(tokens) < len(request.token_ids) + params.max_tokens:
            with torch.inference_mode():
                logits = loaded.case.model(input_ids=torch.tensor([tokens])).logits[:, -1]
            chosen = sample_tokens(
                logits,
                *(torch.tensor([value]) for value in (params.temperature, params.top_k)),
                *(torch.tensor([value]) for value in (params.top_p, params.seed, len(tokens))),
            )
            tokens.append(int(chosen))
            if tokens[-1] == EOS_ID:
                break
        assert list(found[request.index].token_ids) == tokens[len(request.token_ids) :]


def test_rows_of_one_batch_end_apart(loaded: Loaded) -> None:
    """By length, by a token, by a string, and not at all before the others' end."""
    whole = loaded.answers(
        [loaded.request(index, SamplingParams(max_tokens=9, ignore_eos=True)) for index in range(4)]
    )
    assert all(len(answer.token_ids) == 9 for answer in whole.values())
    tokenizer = loaded.inputs.processor.tokenizer
    second, third = whole[1].token_ids, whole[2].token_ids
    stop = tokenizer.decode(third[:6])[-2:]
    params = [
        SamplingParams(max_tokens=2, ignore_eos=True),
        SamplingParams(max_tokens=9, ignore_eos=True, stop_token_ids=[second[4]]),
        SamplingParams(max_tokens=9, ignore_eos=True, stop=[stop]),
        SamplingParams(max_tokens=9, ignore_eos=True),
    ]
    found = loaded.answers([loaded.request(index, each) for index, each in enumerate(params)])
    assert found[0].token_ids == whole[0].token_ids[:2]
    assert found[0].finish_reason == "length"
    assert found[1].token_ids == second[: second.index(second[4]) + 1]
    assert found[1].finish_reason == "stop"
    text = tokenizer.decode(third)
    assert (found[2].finish_reason, found[2].text_end) == ("stop", text.index(stop))
    assert found[2].token_ids == third[: len(found[2].token_ids)]
    assert found[3].token_ids == whole[3].token_ids


def test_end_of_sequence_ends_a_row_unless_it_is_ignored(loaded: Loaded) -> None:
    whole = loaded.answers([loaded.request(0, SamplingParams(max_tokens=5, ignore_eos=True))])[0]
    end = whole.token_ids[2]
    row = RowUnderWay(
        loaded.request(0, SamplingParams(max_tokens=5)),
        loaded.inputs.processor.tokenizer,
        [end],
        512,
        stream=False,
    )

    def push(each: RowUnderWay, token_id: int, logprob: object) -> None:
        each.push(token_id)

    loaded.replica._thread._generator.answer([row], push, lambda: False)
    assert row.token_ids == list(whole.token_ids[: whole.token_ids.index(end) + 1])


def test_what_the_model_raises_is_of_the_batch(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator: Any = loaded.replica._thread._generator
    row = RowUnderWay(
        loaded.request(0, SamplingParams()),
        loaded.inputs.processor.tokenizer,
        (),
        512,
        stream=False,
    )

    def fail_with(error: Exception) -> BatchFailedError:
        def generate(**_: object) -> None:
            raise error

        monkeypatch.setattr(generator._model, "generate", generate)
        with pytest.raises(BatchFailedError) as caught:
            generator.answer([row], lambda each, token: None, lambda: False)
        return caught.value

    assert fail_with(torch.OutOfMemoryError("CUDA out of memory")).out_of_memory
    other = fail_with(ValueError("tokens: 4, features: 5"))
    assert not other.out_of_memory
    assert str(other) == "ValueError: tokens: 4, features: 5"


class Miscounting:
    """Plays a model whose logits move where a prompt is padded, from the step ``wrong_from`` on."""

    def __init__(self, wrong_from: int, by: float = 3.0) -> None:
        self._wrong_from, self._by = wrong_from, by

    def logits(self, requests: Sequence[Request], num_steps: int) -> list[torch.Tensor]:
        longest = max(len(request.token_ids) for request in requests)
        found = []
        for step in range(num_steps):
            rows = torch.arange(9.0).repeat(len(requests), 1)
            for row, each in zip(rows, requests, strict=True):
                if step >= self._wrong_from and len(each.token_ids) < longest:
                    row[0] += self._by
            found.append(rows)
        return found


def test_models_are_tried_with_a_padded_prompt(loaded: Loaded) -> None:
    processor = loaded.inputs.processor
    assert isinstance(processor, HfProcessor)
    generator: Any = loaded.replica._thread._generator
    assert pads_safely(generator, processor)
    assert not pads_safely(Miscounting(0), processor)
    assert not pads_safely(Miscounting(2), processor)
    assert pads_safely(Miscounting(0, by=0.1), processor)
    assert pads_safely(Miscounting(99), processor)


def test_models_that_miscount_have_batches_of_one_length(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmbatch.hf.padding.pads_safely", lambda *_: False)
    replica = load_with_transformers(loaded.session, loaded.inputs)
    short, same, long = (loaded.request(index, SamplingParams()) for index in (1, 1, 8))
    assert replica._signature(short) == replica._signature(same)
    text_only = replace(long, inputs=short.inputs)  # its tensors alone would go together
    assert replica._signature(short) != replica._signature(text_only)


def test_a_checkpoints_own_generation_settings_play_no_part(loaded: Loaded, tmp_path: Path) -> None:
    """Such as a penalty on repetition: rows say what they want, and are sampled by our rules."""
    folder = Path(shutil.copytree(loaded.case.folder, tmp_path / "model"))
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text()) | {
        "do_sample": True,
        "repetition_penalty": 50.0,
        "temperature": 3.0,
        "eos_token_id": [EOS_ID],
    }
    path.write_text(json.dumps(settings))
    session = replace(loaded.session, model=str(folder))
    other = load_with_transformers(session, open_model(session))
    request = loaded.request(1, SamplingParams(max_tokens=8))
    expected = loaded.answers([request])
    other.submit(request)
    events = []
    while other.num_unfinished:
        events += other.poll()
    other.close()
    assert [event.token_ids for event in events if isinstance(event, Completion)] == [
        expected[1].token_ids
    ]


def test_penalties_are_those_of_generate(loaded: Loaded) -> None:
    """In a batch of rows that ask for none, of other lengths."""
    for index, options in ((1, {"repetition_penalty": 1.6}), (5, {"no_repeat_ngram_size": 1})):
        plain, asks = (SamplingParams(max_tokens=MAX_TOKENS, **each) for each in ({}, options))
        requests = [loaded.request(i, asks if i == index else plain) for i in range(7)]
        found = loaded.answers(requests)
        before = loaded.answers([loaded.request(i, plain) for i in range(7)])
        for i in range(7):
            expected = before[i].token_ids
            if i == index:
                inputs = loaded.case.inputs(ROWS[i])
                expected = tuple(loaded.case.answer(inputs, **options))
                assert expected != before[i].token_ids
            assert found[i].token_ids == expected


def test_a_row_of_no_numbers_is_an_error_and_the_others_are_answered(loaded: Loaded) -> None:
    requests = [loaded.request(index, SamplingParams(max_tokens=6)) for index in range(3)]
    before = loaded.answers(requests)
    others = {each for index in (0, 2) for each in requests[index].token_ids}
    others.update(*(before[index].token_ids for index in (0, 2)))
    token = next(each for each in requests[1].token_ids if each not in others)

    def overflow(_: Any, inputs: Any, hidden: Tensor) -> Tensor:
        return hidden.masked_fill((inputs[0] == token)[..., None], torch.nan)

    model: Any = loaded.replica._thread._generator._model  # type: ignore[attr-defined]
    hook = model.get_input_embeddings().register_forward_hook(overflow)
    try:
        found = loaded.events(requests)
    finally:
        hook.remove()
    failure = found.pop(1)
    assert isinstance(failure, RowFailure)
    assert "no finite numbers for this row" in failure.error.message
    for index, event in found.items():
        assert isinstance(event, Completion) and event.token_ids == before[index].token_ids


def test_rows_that_follow_a_grammar_have_the_tokens_of_a_plain_loop(loaded: Loaded) -> None:
    """The likeliest token that a matcher allows, beside rows that follow none."""
    plain = SamplingParams(max_tokens=10)
    shapes = {1: SamplingParams(max_tokens=10, regex="[a-e]{2,8}")}
    shapes[5] = SamplingParams(max_tokens=10, json_schema={"enum": [True, "x", 17]})
    shapes[6] = SamplingParams(max_tokens=10, regex="b{4}", no_repeat_ngram_size=1)  # in vain
    requests = [loaded.request(index, shapes.get(index, plain)) for index in range(7)]
    found = loaded.answers(requests)
    before = loaded.answers([loaded.request(index, plain) for index in range(7)])
    serialized = loaded.inputs.processor.tokenizer.serialized()
    vocab_size = loaded.case.model.config.get_text_config().vocab_size
    tokenizer = LLTokenizer(serialized, n_vocab=vocab_size, eos_token=EOS_ID)
    for index, request in enumerate(requests):
        if index not in shapes:
            assert found[index].token_ids == before[index].token_ids
            continue
        grammar = shapes[index].grammar
        assert grammar is not None
        matcher, answer = LLMatcher(tokenizer, grammar), torch.tensor([], dtype=torch.int64)
        while len(answer) < 10 and EOS_ID not in answer:
            tokens = torch.cat([torch.tensor(request.token_ids), answer])[None]
            with torch.inference_mode():
                logits = loaded.case.model(input_ids=tokens).logits[0, -1]
            mask = torch.frombuffer(bytearray(matcher.compute_bitmask()), dtype=torch.uint8)
            bits = (mask[:, None] >> torch.arange(8)) & 1
            allowed = logits.masked_fill(bits.flatten()[:vocab_size] == 0, -torch.inf)
            answer = torch.cat([answer, allowed.argmax()[None]])
            assert matcher.consume_token(int(answer[-1]))
        assert list(found[index].token_ids) == answer.tolist()


def test_log_probabilities_are_those_of_the_models_logits(loaded: Loaded) -> None:
    asks = SamplingParams(max_tokens=5, logprobs=2, repetition_penalty=1.6, ignore_eos=True)
    plain = SamplingParams(max_tokens=5)
    found = loaded.answers([loaded.request(1, asks), loaded.request(5, plain)])
    assert found[5].logprobs == ()
    answer = torch.tensor(found[1].token_ids)
    prompt = loaded.case.inputs(ROWS[1])["input_ids"][0]
    with torch.inference_mode():
        logits = loaded.case.model(input_ids=torch.cat([prompt, answer])[None]).logits[0]
    expected = logits[len(prompt) - 1 : -1].log_softmax(-1)
    assert [each.token_id for each in found[1].logprobs] == answer.tolist()
    torch.testing.assert_close(
        torch.tensor([each.logprob for each in found[1].logprobs]),
        expected.gather(1, answer[:, None]).squeeze(1),
        rtol=0,
        atol=1e-4,
    )
    tops = torch.tensor([each.top for each in found[1].logprobs])
    torch.testing.assert_close(tops[..., 1], expected.topk(2).values, rtol=0, atol=1e-4)
