"""Fields that are no more than accepted, and those that would change the answer.

The latter are refused, except where they ask for what happens anyhow.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from vlmbatch.openai.errors import bad_request
from vlmbatch.openai.fields import Json, as_json, boolean, integer, json_object, string, tags

# Of accounts, logs and caches: without a bearing on the answer. Only their types are looked at.
HARMLESS: dict[str, Callable[[Json, str], object]] = {
    "user": string,
    "metadata": tags,
    "store": boolean,
    "service_tier": string,
    "safety_identifier": string,
    "parallel_tool_calls": boolean,
    "prompt_cache_key": string,
    "prompt_cache_retention": string,
    "prompt_cache_options": json_object,
    "request_id": string,
    "priority": integer,
}

# By field: the values that ask for nothing. Null does for all of them.
_BOTH: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "use_beam_search": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),
    "include_stop_str_in_output": (False,),
}
NEUTRAL_CHAT: dict[str, tuple[Any, ...]] = _BOTH | {
    "echo": (False,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "moderation": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "add_special_tokens": (False,),
    "chat_template_kwargs": ({},),
}
NEUTRAL_COMPLETION: dict[str, tuple[Any, ...]] = _BOTH | {
    "suffix": ("",),
    "add_special_tokens": (True,),
}


_TOOL_FIELDS = ("tools", "tool_choice", "functions", "function_call")


def check_fields(
    body: Json, supported: Collection[str], neutral: Mapping[str, tuple[Any, ...]]
) -> None:
    """Refuse what cannot be done as asked.

    Raises:
        ApiError: 400; ``param`` names the field.
    """
    for name, value in body.items():
        if name in supported:
            continue
        if name in HARMLESS:
            HARMLESS[name](body, name)
            continue
        if name not in neutral:
            raise bad_request(
                f"unrecognized request argument supplied: {name:.80}",
                name[:80],
                "unknown_parameter",
            )
        if value is None or any(_same(value, allowed) for allowed in neutral[name]):
            continue
        instead = " or ".join(as_json(allowed) for allowed in neutral[name])
        hint = f"leave it out, or set it to {instead}" if instead else "leave it out"
        if name in _TOOL_FIELDS:
            hint = "tools are not called here; for JSON of a schema use 'response_format'"
        raise bad_request(
            f"'{name}' with {as_json(value)} is not supported: {hint}",
            name,
            "unsupported_parameter",
        )


def _same(value: object, allowed: object) -> bool:
    """Equality, for which true is no 1."""
    return isinstance(value, bool) == isinstance(allowed, bool) and value == allowed
