"""Classes' log-probabilities against transformers', over whole class strings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoints import IMAGE_TOKEN_ID
from parity_pair import IMAGES, make_pair
from qwen_vl_case import ROWS, make_case
from qwen_vl_ours import Ours

from vlmbatch.config import EngineConfig, SamplingParams
from vlmbatch.engine.loading import build_engine
from vlmbatch.models.family import load_model_config
from vlmbatch.replicas.choices import ChoiceScorer
from vlmbatch.replicas.composed import ComposedReplica
from vlmbatch.replicas.local import LocalReplica
from vlmbatch.replicas.replica import Completion, Replica
from vlmbatch.types import ImageGrid, ImageSpan, PixelImage, Request

# As a tokenizer would make them: one token, several, a common beginning.
PATHS = {"a": [27], "bc": [29, 31], "bd": [29, 32], "efgh": [43, 44, 48, 46]}
WHOLE = PATHS | {"b": [29]}  # which begins others
ENDS = [22, 35]


class Letters:
    """Plays a tokenizer."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        assert not add_special_tokens
        return WHOLE[text] if text else []

    def piece(self, token_id: int) -> str:
        return ""

    def has_text(self, token_id: int) -> bool:
        return False


def answers(replica: Replica, requests: list[Request]) -> dict[int, Completion]:
    for request in requests:
        replica.submit(request)
    found = {}
    while replica.num_unfinished:
        for event in replica.poll():
            assert isinstance(event, Completion), event
            found[event.index] = event
    return found


def check(found: Completion, paths: dict[str, list[int]], logprobs: Any, ends: list[int]) -> None:
    """``logprobs``: (T,) tokens behind the prompt to (T + 1, V), of each token and one more."""
    assert [choice for choice, _ in found.choices] == list(paths)
    for (_, value), path in zip(found.choices, paths.values(), strict=True):
        table = logprobs(path)
        expected = sum(float(table[i, token]) for i, token in enumerate(path))
        if ends:
            expected += float(table[len(path), ends].logsumexp(0))
        assert value == pytest.approx(expected, abs=1e-4)
    best = max(found.choices, key=lambda choice: choice[1])[0]
    assert list(found.token_ids) == paths[best]


@pytest.mark.parametrize("budget", [7, 4096])
def test_classes_of_images(tmp_path: Path, budget: int) -> None:
    pair = make_pair("llama", "clip", "llava-hf", tmp_path)
    engine = build_engine(
        tmp_path,
        load_model_config(tmp_path),
        EngineConfig(max_batched_tokens=budget),
        SimpleNamespace(images=IMAGES, tokenizer=None),
    )
    letters: Any = Letters()
    replica = ComposedReplica(LocalReplica(engine, letters), [ChoiceScorer(letters, ENDS).compose])
    requests = []
    for index, (ids, pixels) in enumerate(zip(pair.prompts, pair.pixels, strict=True)):
        places = (ids == IMAGE_TOKEN_ID).nonzero().squeeze(1).tolist()
        grid = ImageGrid(1, len(places), len(places), pixels.nbytes)
        image = PixelImage(pixels.numpy(), b"image %d" % index, grid)
        spans = (ImageSpan(places[0], len(places), 0),)
        params = SamplingParams(choices=list(WHOLE if index % 2 else PATHS))
        requests.append(Request(index, ids.tolist(), params, (image,), spans))
    plain = Request(99, [1, 7, 9], SamplingParams(max_tokens=3, ignore_eos=True))
    found = answers(replica, [*requests, plain])
    assert len(found[99].token_ids) == 3 and found[99].choices == ()
    assert replica.status.answered == len(requests) + 1  # rows, not what was asked for them

    # Of the prompts themselves, which are in the prefix cache by now.
    telling = SamplingParams(max_tokens=2, logprobs=0, ignore_eos=True)
    told = answers(replica, [replace(r, sampling=telling, prompt_logprobs=3) for r in requests])
    for index, (ids, pixels) in enumerate(zip(pair.prompts, pair.pixel_values(), strict=True)):
        with torch.inference_mode():
            logits = pair.theirs(input_ids=ids[None], pixel_values=pixels[None]).logits[0]
        table = logits.log_softmax(-1)
        ours = told[index].prompt_logprobs
        assert [each.token_id for each in ours] == ids[1:].tolist()
        own = table[:-1].gather(1, ids[1:, None]).squeeze(1)
        assert [each.logprob for each in ours] == pytest.approx(own.tolist(), abs=1e-4)
        likeliest = table[:-1].topk(3).values.tolist()
        for each, values in zip(ours, likeliest, strict=True):
            assert [value for _, value in each.top] == pytest.approx(values, abs=1e-4)
        assert len(told[index].logprobs) == 2
    for index, (ids, pixels) in enumerate(zip(pair.prompts, pair.pixel_values(), strict=True)):

        def logprobs(path: list[int], ids: Any = ids, pixels: Any = pixels) -> Any:
            whole = torch.cat([ids, torch.tensor(path)])[None]
            with torch.inference_mode():
                logits = pair.theirs(input_ids=whole, pixel_values=pixels[None]).logits[0]
            return logits[len(ids) - 1 :].log_softmax(-1)

        check(found[index], WHOLE if index % 2 else PATHS, logprobs, ENDS if index % 2 else [])


def test_classes_of_prompts_with_positions_of_three_rows(tmp_path: Path) -> None:
    case = make_case("qwen2_5_vl", tmp_path)
    ours = Ours.load(case.model)
    engine = build_engine(
        case.model,
        load_model_config(case.model),
        EngineConfig(),
        ours.processor,
    )
    letters: Any = Letters()
    replica = ComposedReplica(LocalReplica(engine, letters), [ChoiceScorer(letters, ()).compose])
    requests = []
    for index, (prompt, names) in enumerate(ROWS):
        encoded = ours.encoded(prompt, names)
        requests.append(
            Request(
                index,
                encoded.token_ids,
                SamplingParams(choices=list(PATHS)),
                tuple(ours.images(case.manifest.parent, names)),
                encoded.image_spans,
                encoded.positions,
                encoded.next_position,
            )
        )
    found = answers(replica, requests)
    for index, inputs in enumerate(case.inputs):

        def logprobs(path: list[int], inputs: Any = inputs) -> Any:
            more = torch.tensor([path])
            longer = dict(inputs)
            longer["input_ids"] = torch.cat([inputs["input_ids"], more], 1)
            longer["attention_mask"] = torch.ones_like(longer["input_ids"])
            types = inputs["mm_token_type_ids"]
            longer["mm_token_type_ids"] = torch.cat([types, torch.zeros_like(more).int()], 1)
            case.theirs.model.rope_deltas = None
            with torch.inference_mode():
                logits = case.theirs(**longer).logits[0]
            return logits[inputs["input_ids"].shape[1] - 1 :].log_softmax(-1)

        check(found[index], PATHS, logprobs, [])
