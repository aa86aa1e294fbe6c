"""Configuration files: TOML whose keys are the long names of the options of ``run``."""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import Any, get_args

from vlmbatch.config import AttentionBackendName, Device, DType, ImageInputType, ManifestFormat
from vlmbatch.errors import ConfigError
from vlmbatch.log import LogFormat

STRING, INTEGER, NUMBER = "a string", "an integer", "a number"
BOOLEAN, STRINGS, INTEGERS = "true or false", "an array of strings", "an array of integers"
SHAPE = 'an array of integers, or a string such as "1,3,336,336"'
TIME = 'a number of seconds, or a string such as "2h"'
SIZE = 'a number of bytes, or a string such as "4GiB"'
SHARE = 'a number from 0 to 1, or a string such as "5%"'

# What each key holds; a tuple lists the choices of a string.
KEYS: dict[str, str | tuple[str, ...]] = {
    "output": STRING,
    "shard_rows": INTEGER,
    "overwrite": BOOLEAN,
    "retry_failed": BOOLEAN,
    "incremental": BOOLEAN,
    "grace": TIME,
    "deadline": TIME,
    "max_error_rate": SHARE,
    "format": get_args(ManifestFormat),
    "limit": INTEGER,
    "prompt_column": STRING,
    "image_column": STRING,
    "id_column": STRING,
    "column_prefix": STRING,
    "keep_inputs": BOOLEAN,
    "host": STRING,
    "port": INTEGER,
    "api_key": STRING,
    "served_model_name": STRING,
    "limit_images_per_prompt": INTEGER,
    "max_request_bytes": SIZE,
    "max_concurrent_requests": INTEGER,
    "request_timeout": TIME,
    "model": STRING,
    "revision": STRING,
    "tokenizer": STRING,
    "dtype": get_args(DType),
    "device": get_args(Device),
    "attention_backend": get_args(AttentionBackendName),
    "image_input_type": get_args(ImageInputType),
    "image_token_id": INTEGER,
    "image_input_shape": SHAPE,
    "image_feature_size": INTEGER,
    "strict_image_tokens": BOOLEAN,
    "image_processor": STRING,
    "image_processor_revision": STRING,
    "disable_image_processor": BOOLEAN,
    "image_root": STRING,
    "allow_domain": STRINGS,
    "max_image_pixels": INTEGER,
    "image_workers": INTEGER,
    "image_timeout": NUMBER,
    "host_memory": SIZE,
    "chat": BOOLEAN,
    "chat_template": STRING,
    "prompt_template": STRING,
    "system_prompt": STRING,
    "max_tokens": INTEGER,
    "temperature": NUMBER,
    "top_p": NUMBER,
    "top_k": INTEGER,
    "stop": STRINGS,
    "stop_token_id": INTEGERS,
    "seed": INTEGER,
    "ignore_eos": BOOLEAN,
    "max_num_seqs": INTEGER,
    "max_batched_tokens": INTEGER,
    "kv_cache_tokens": INTEGER,
    "max_model_len": INTEGER,
    "no_prefix_caching": BOOLEAN,
    "quiet": BOOLEAN,
    "verbose": INTEGER,
    "no_progress": BOOLEAN,
    "log_format": get_args(LogFormat),
    "summary_json": STRING,
    "exit_zero": BOOLEAN,
}


def load_settings(path: Path) -> dict[str, Any]:
    """The values of a configuration file, as defaults for the command line.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or a key or value is not one of ours;
            the message names the file, the line and the key.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"cannot read configuration file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    for key, value in values.items():
        where = f"{path}{_line_of(key, text)}"
        if key not in KEYS:
            raise ConfigError(f"{where}: unknown key '{key}'{_suggestion(key, value)}")
        if not _fits(value, KEYS[key]):
            wanted = KEYS[key]
            if isinstance(wanted, tuple):
                wanted = "one of " + ", ".join(f'"{choice}"' for choice in wanted)
            raise ConfigError(f"{where}: '{key}' must be {wanted}, got {_shown(value)}")
    shape = values.get("image_input_shape")
    if isinstance(shape, list):
        values["image_input_shape"] = ",".join(map(str, shape))
    as_text = {"grace", "deadline", "max_error_rate", "host_memory"}
    for key in values.keys() & (as_text | {"max_request_bytes", "request_timeout"}):
        values[key] = str(values[key])
    return values


def _fits(value: Any, kind: str | tuple[str, ...]) -> bool:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(kind, tuple):
        return value in kind
    if kind == STRING:
        return isinstance(value, str)
    if kind == INTEGER:
        return is_integer
    if kind == NUMBER:
        return is_integer or isinstance(value, float)
    if kind == BOOLEAN:
        return isinstance(value, bool)
    if kind in (SHAPE, TIME, SHARE, SIZE) and isinstance(value, str):
        return True
    if kind == SIZE:
        return is_integer
    if kind in (TIME, SHARE):
        return _fits(value, NUMBER)
    item_kind = STRING if kind == STRINGS else INTEGER
    return isinstance(value, list) and all(_fits(item, item_kind) for item in value)


def _suggestion(key: str, value: Any) -> str:
    close = difflib.get_close_matches(key.replace("-", "_").lower(), KEYS, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    if isinstance(value, dict):
        return "; keys stand at the top level of the file, not in [tables]"
    return "; keys are the option names of `vlmbatch run`, such as max_tokens for --max-tokens"


def _line_of(key: str, text: str) -> str:
    """``:line`` where the key is set, as far as a look at the text can tell."""
    found = re.search(rf"^\s*\[?\s*[\"']?{re.escape(key)}[\"']?\s*[=.\]]", text, re.MULTILINE)
    if found is None:
        return ""
    start = found.end() - len(found[0].lstrip())
    return f":{text.count(chr(10), 0, start) + 1}"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    return "a table" if isinstance(value, dict) else str(value)
