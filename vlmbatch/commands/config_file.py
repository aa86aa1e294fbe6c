"""Configuration files: TOML whose keys are the long names of the options of ``run``."""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import Any

from vlmbatch.commands.reporting import ReportOptions
from vlmbatch.config import ManifestConfig, OutputOptions, RunPolicy, SamplingParams, SessionConfig
from vlmbatch.config.option import OptField, opt_fields
from vlmbatch.config.units import UNITS
from vlmbatch.errors import ConfigError
from vlmbatch.serve.config import ServeConfig

_KINDS = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}
_ARRAYS = {str: "an array of strings", int: "an array of integers"}
_CONFIGS = (
    *(OutputOptions, ManifestConfig, RunPolicy, SessionConfig),
    *(SamplingParams, ReportOptions, ServeConfig),
)

# The options that a file may set, by its keys.
KEYS: dict[str, OptField] = {
    item.name: item
    for config in _CONFIGS
    for item in opt_fields(config)
    if not (item.opt.positional or item.opt.python_only)
}


def load_settings(path: Path) -> dict[str, Any]:
    """The values of a configuration file, as defaults for the command line.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or a key or value is not one of ours;
            the message names the file, the line and the key.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # as Windows' Notepad writes it
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
            raise ConfigError(f"{where}: '{key}' must be {_wanted(KEYS[key])}, got {_shown(value)}")
        if (unit := KEYS[key].opt.unit) is not None:  # as the command line has it
            values[key] = UNITS[unit].show(value) if isinstance(value, list) else str(value)
    return values


def _fits(value: Any, item: OptField) -> bool:
    if item.choices:
        return value in item.choices
    if item.opt.unit is not None:
        kinds = UNITS[item.opt.unit].file_kinds
        return isinstance(value, (str, *kinds)) and not isinstance(value, bool)
    if item.item_kind is not None:
        return isinstance(value, list) and all(_is(each, item.item_kind) for each in value)
    return _is(value, item.plain_kind)


def _is(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int | float)
    return isinstance(value, str if kind is Path else kind)


def _wanted(item: OptField) -> str:
    if item.choices:
        return "one of " + ", ".join(f'"{choice}"' for choice in item.choices)
    if item.opt.unit is not None:
        return UNITS[item.opt.unit].in_files
    if item.item_kind is not None:
        return _ARRAYS[item.item_kind]
    return _KINDS[str if item.plain_kind is Path else item.plain_kind]


def _suggestion(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return "; keys stand at the top level of the file, not in [tables]"
    close = difflib.get_close_matches(key.replace("-", "_").lower(), KEYS, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
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
