"""What ``config.json`` says of quantized weights, and which of them are meant. No torch.

Read are the 8-bit floats of compressed-tensors (weights with a scale an output channel) and
``quant_method`` "fp8" (a scale a block of 128x128), both with activations quantized at run time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vlmbatch.errors import CheckpointError
from vlmbatch.models.json_fields import JsonFields

_FIELD = "quantization_config"
_BLOCK_SIZE = [128, 128]
_DECODER = "language_model."
# How checkpoints and versions of transformers call what is below it.
_DECODER_NAMES = (_DECODER, "language_model.model.", "model.language_model.", "model.")
_MAX_IGNORED = 10_000  # names; published files have a few hundred
_MAX_PATTERN = 300  # characters; published ones have less than 100
_MAX_REPEATS = 4  # of a pattern: each may multiply the time that it takes


@dataclass(frozen=True)
class Fp8Config:
    """Linear layers of the decoder in e4m3.

    ``blocks``: a scale for 128x128 weights, else one an output channel. ``scale_name``: what the
    checkpoint calls them beside ``weight``; None: its weights are in 16 bits, and quantized while
    they load. ``ignored``: modules that stay in 16 bits, by name or by "re:" and a pattern.
    """

    blocks: bool = False
    scale_name: str | None = None
    ignored: tuple[str, ...] = ()

    def ignores(self, name: str) -> bool:
        """Whether a layer, by our name of it, stays in 16 bits."""
        names = [name]
        if name.startswith(_DECODER):
            names = [prefix + name.removeprefix(_DECODER) for prefix in _DECODER_NAMES]
        return any(
            pattern.match(each) is not None for pattern in self._patterns for each in names
        ) or any(_is_within(each, ignored) for ignored in self._names for each in names)

    @cached_property
    def _names(self) -> list[str]:
        return [each for each in self.ignored if not each.startswith("re:")]

    @cached_property
    def _patterns(self) -> list[re.Pattern[str]]:
        return [re.compile(each[3:]) for each in self.ignored if each.startswith("re:")]

    @property
    def description(self) -> str:
        """What is quantized, for people and for a run's metadata."""
        scales = "a scale a block of 128x128" if self.blocks else "a scale an output channel"
        origin = "by --quantize fp8" if self.scale_name is None else "as the checkpoint has them"
        return f"linear layers of the decoder in FP8 (e4m3), {scales}, {origin}"


def parse_quantization(top: JsonFields, text: JsonFields, vision: JsonFields) -> Fp8Config | None:
    """Of the whole model or its decoder; None: weights are not quantized.

    Raises:
        CheckpointError: another kind of quantization; the message names field and value.
    """
    if vision.values.get(_FIELD):
        raise vision.error(_FIELD, "none: a quantized vision tower is unsupported")
    given = [each for each in (top, text) if each.values.get(_FIELD)]
    if not given:
        return None
    if len(given) == 2 and top.values[_FIELD] != text.values[_FIELD]:
        raise text.error(_FIELD, "the same as beside it, or none")
    fields = given[0].section(_FIELD)
    assert fields is not None
    method = fields.choice("quant_method", "", ("compressed-tensors", "fp8"))
    if method == "fp8":
        return _parse_blocks(fields)
    return _parse_compressed(fields)


def _parse_blocks(fields: JsonFields) -> Fp8Config:
    _expect(fields, "fmt", "e4m3", missing="e4m3")
    _expect(fields, "activation_scheme", "dynamic", missing="dynamic")
    _expect(fields, "weight_block_size", _BLOCK_SIZE)
    ignored = *_ignored(fields, "modules_to_not_convert"), *_ignored(fields, "ignored_layers")
    return Fp8Config(True, "weight_scale_inv", ignored)


def _parse_compressed(fields: JsonFields) -> Fp8Config:
    _expect(fields, "format", "float-quantized")
    if fields.values.get("quantization_status") not in (None, "compressed", "frozen"):
        raise fields.error("quantization_status", "'compressed' or 'frozen'")
    sparsity = fields.section("sparsity_config")
    if sparsity is not None and sparsity.values:
        _expect(sparsity, "format", "dense")
    for name in ("kv_cache_scheme", "transform_config"):
        if fields.values.get(name):
            raise fields.error(name, "none")
    groups = fields.section("config_groups")
    if groups is None or len(groups.values) != 1:
        raise fields.error("config_groups", "one group")
    group = groups.section(next(iter(groups.values)))
    if group is None:
        raise fields.error("config_groups", "one group")
    _expect(group, "targets", ["Linear"])
    _expect(group, "format", "float-quantized", missing="float-quantized")
    if group.values.get("output_activations"):
        raise group.error("output_activations", "none")
    common = {"num_bits": 8, "type": "float"}
    _expect_all(group, "weights", {**common, "strategy": "channel"}, dynamic=False)
    _expect_all(group, "input_activations", {**common, "strategy": "token"}, dynamic=True)
    return Fp8Config(False, "weight_scale", _ignored(fields, "ignore"))


def _expect_all(
    group: JsonFields, name: str, expected: Mapping[str, Any], *, dynamic: bool
) -> None:
    section = group.section(name)
    if section is None:
        raise group.error(name, "an object")
    for field, value in expected.items():
        _expect(section, field, value)
    _expect(section, "dynamic", dynamic, missing=False)
    _expect(section, "symmetric", True, missing=True)


def _expect(fields: JsonFields, name: str, value: Any, missing: Any = None) -> None:
    """Refuse a field of another value; ``missing``: what it stands for where it is left out."""
    found = fields.values.get(name)
    found = missing if found is None else found
    if found != value or type(found) is not type(value):
        raise fields.error(name, repr(value))


def _ignored(fields: JsonFields, name: str) -> tuple[str, ...]:
    value = fields.values.get(name)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise fields.error(name, "a list of names")
    if len(value) > _MAX_IGNORED:
        raise CheckpointError(
            f"{fields.where}: {name} has {len(value)} names, over the limit of {_MAX_IGNORED}"
        )
    for item in value:
        if item.startswith("re:") and not _is_quick(item[3:]):
            raise JsonFields({name: item}, fields.where).error(
                name,
                f"a regular expression of at most {_MAX_PATTERN} characters and {_MAX_REPEATS} "
                "repeats, none of them of a group",
            )
    return tuple(value)


def _is_quick(pattern: str) -> bool:
    """Whether it is a pattern that no name of a module keeps busy for long."""
    repeats = len(re.findall(r"[*+{]", pattern))
    if len(pattern) > _MAX_PATTERN or repeats > _MAX_REPEATS or re.search(r"\)[*+{]", pattern):
        return False
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _is_within(name: str, ignored: str) -> bool:
    """Whether a module is the ignored one or below it, whose name may lack what it begins with."""
    return f".{ignored}." in f".{name}."
