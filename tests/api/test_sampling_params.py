"""Sampling parameters of every type and value: as they should be, or refused by name."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from anything import ANYTHING
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmbatch import SamplingParams
from vlmbatch.errors import ConfigError


@given(st.sampled_from([field.name for field in fields(SamplingParams)]), ANYTHING)
@settings(deadline=None)
def test_sampling_params_have_their_types_or_are_refused(name: str, value: Any) -> None:
    try:
        params = SamplingParams(**{name: value})
    except ConfigError as error:
        assert str(error).startswith(name) or (name == "stop" and "stop string" in str(error))
        return
    kinds = [type(each) for each in asdict(params).values()]
    first, penalties = [int, float, float, int, int, tuple, tuple, bool], [float] * 4 + [int]
    assert kinds[:-7] == first + penalties
    assert kinds[-7] is (type(None) if params.logprobs is None else int)
    assert kinds[-6] is tuple and all(type(each) is str for each in params.choices)
    assert kinds[-5] is (type(None) if params.json_schema is None else str)
    assert kinds[-4] is (type(None) if params.regex is None else str)
    assert kinds[-3:] == [int, int, int]
    assert all(type(each) is str for each in params.stop)
    assert all(type(each) is int for each in params.stop_token_ids)


def test_none_is_the_default_and_no_limit_of_tokens() -> None:
    nothing: dict[str, Any] = {field.name: None for field in fields(SamplingParams)}
    params = asdict(SamplingParams(**nothing))
    assert params.pop("max_tokens") > 2**30
    default = asdict(SamplingParams())
    del default["max_tokens"]
    assert params == default
