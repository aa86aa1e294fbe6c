"""Arguments of every type: each is taken, refused at the call, or the error of its own request."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from anything import ANYTHING
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmbatch import LLM, SamplingParams
from vlmbatch.config import SessionConfig
from vlmbatch.errors import ConfigError


class OpenedError(Exception):
    """The arguments were taken."""


# What each argument takes, beside None where that is its default.
TEXT, NUMBER, PATH = (str,), (int, float, np.integer, np.floating), (str, Path)
INTEGER = (int, np.integer, np.ndarray, torch.Tensor)  # arrays and tensors of one integer
TAKEN = {
    **dict.fromkeys(("dtype", "quantize", "device"), TEXT),
    **dict.fromkeys(("attention_backend", "engine", "image_decoder", "image_input_type"), TEXT),
    "kv_cache_dtype": TEXT,
    **dict.fromkeys(("model", "tokenizer", "image_processor", "chat_template", "image_root"), PATH),
    **dict.fromkeys(("revision", "image_processor_revision"), PATH),  # branches are written so too
    **dict.fromkeys(("image_token_id", "image_feature_size", "max_model_len"), INTEGER),
    **dict.fromkeys(("max_num_seqs", "max_num_batched_tokens", "kv_cache_tokens"), INTEGER),
    **dict.fromkeys(
        (
            "cpu_threads",
            "replicas",
            "tensor_parallel_size",
            "max_image_pixels",
            "image_workers",
            "host_memory",
        ),
        INTEGER,
    ),
    **dict.fromkeys(("max_pixels", "min_pixels", "longest_side"), INTEGER),
    **dict.fromkeys(("disable_image_processor", "strict_image_tokens"), (bool,)),
    "enable_prefix_caching": (bool,),
    "gpus": (str, int),
    "image_input_shape": (str, list, tuple),
    "image_timeout_s": NUMBER,
}


def test_every_argument_of_the_model_is_looked_at() -> None:
    assert LLM.__init__.__kwdefaults__.keys() | {"model"} == TAKEN.keys()


@given(st.sampled_from(sorted(TAKEN)), ANYTHING)
@settings(deadline=None)
def test_arguments_of_the_model_have_their_types_or_are_refused(name: str, value: Any) -> None:
    def open_model(config: SessionConfig) -> NoReturn:
        raise OpenedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vlmbatch.api.loaded_model.open_model", open_model)
        try:
            LLM(**{"model": "m", name: value})
        except ConfigError:
            return
        except OpenedError:
            pass
    assert isinstance(value, TAKEN[name]) or (
        value is None and LLM.__init__.__kwdefaults__.get(name, "m") is None
    )
    assert bool in TAKEN[name] or not isinstance(value, bool)


@given(st.sampled_from(["generate", "chat", "stream"]), ANYTHING, ANYTHING)
@settings(deadline=None)
def test_calls_refuse_or_answer(shared_llm: LLM, name: str, requests: Any, params: Any) -> None:
    if params is None or isinstance(params, list):
        params = SamplingParams(max_tokens=1)
    try:
        outputs = getattr(shared_llm, name)(requests, params)
    except (TypeError, ConfigError):
        return
    try:
        results = list(outputs)
    except ConfigError as error:
        assert "more requests than the" in str(error)
        return
    for output in results:
        assert (output.error is None) == (len(output.outputs) == 1)


@given(st.lists(ANYTHING, max_size=4), st.integers(0, 4))
@settings(max_examples=50, deadline=None)
def test_bad_requests_lose_no_answer(shared_llm: LLM, requests: list[Any], place: int) -> None:
    """Nor do bad parameters."""
    place = min(place, len(requests))
    requests.insert(place, "USER: Hello")
    params = SamplingParams(max_tokens=1)
    for given_as in (requests, iter(requests)):
        outputs = list(shared_llm.generate(given_as, params))
        assert [output.index for output in outputs] == list(range(len(requests)))
        assert outputs[place].error is None
    each = iter([params if number == place else each for number, each in enumerate(requests)])
    outputs = list(shared_llm.generate(iter(["USER: Hello"] * len(requests)), each))
    assert [output.index for output in outputs] == list(range(len(requests)))
    assert outputs[place].error is None


@pytest.mark.parametrize("requests", [5, None, 1.5, b"USER: Hello", object()])
@pytest.mark.parametrize("name", ["generate", "stream", "chat"])
def test_what_holds_no_requests_is_refused_at_the_call(llm: LLM, name: str, requests: Any) -> None:
    with pytest.raises(TypeError, match=r"(prompts|messages) must be"):
        getattr(llm, name)(requests)


@pytest.mark.parametrize("params", [5, "greedy", {"max_tokens": 3}, [SamplingParams(), None]])
def test_what_holds_no_parameters_is_refused_at_the_call(llm: LLM, params: Any) -> None:
    for call in (llm.generate, llm.stream):
        with pytest.raises(TypeError, match="sampling_params"):
            call(iter(["USER: Hello"] * 2), params)
        with pytest.raises(ConfigError, match="strict must be True or False, got 'no'"):
            call(["USER: Hello"], strict="no")  # type: ignore[call-overload,arg-type]
