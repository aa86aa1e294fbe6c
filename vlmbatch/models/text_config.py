"""The text decoder's part of a checkpoint's configuration. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, cast

from vlmbatch.errors import CheckpointError, ConfigError
from vlmbatch.models.json_fields import JsonFields

_MAX_CONTEXT = 2**21  # a table has a row for each position; published: 1,010,000
TEXT_DEFAULTS: dict[str, dict[str, Any]] = {  # by model_type
    "llama": {
        "vocab_size": 32_000,
        "intermediate_size": 11_008,
        "max_position_embeddings": 2048,
        "eos_token_id": (2,),
    },
    "mistral": {
        "vocab_size": 32_000,
        "intermediate_size": 14_336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "eos_token_id": (2,),
    },
    "qwen2": {
        "vocab_size": 151_936,
        "intermediate_size": 22_016,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32_768,
        "eos_token_id": (),
    },
    "qwen3": {
        "vocab_size": 151_936,
        "intermediate_size": 22_016,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 32_768,
        "eos_token_id": (),
    },
}


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding. "linear" divides positions by ``factor``; "llama3" is Llama 3.1's.

    ``sections``: pairs of dimensions that turn by the positions' first row, second and third, where
    positions have three; in this order, or where ``interleaved`` in turns until a section ends.
    """

    theta: float = 10_000.0
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    sections: tuple[int, ...] = ()
    interleaved: bool = False


@dataclass(frozen=True, slots=True)
class TextConfig:
    """A decoder-only text model of the Llama family."""

    model_type: Literal["llama", "mistral", "qwen2", "qwen3"]
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    hidden_act: str = "silu"
    attention_bias: bool = False  # bias on q, k and v
    output_bias: bool = False  # bias on o
    mlp_bias: bool = False
    head_norms: bool = False  # each head of q and k is normalised before it is rotated
    sliding_windows: tuple[int | None, ...] = ()  # one for each layer
    rope: RopeConfig = field(default_factory=RopeConfig)


def parse_text_config(fields: JsonFields) -> TextConfig:
    """Normalise a ``text_config``.

    Raises:
        CheckpointError: a field is malformed or asks for something unsupported.
    """
    model_type = fields.choice("model_type", "llama", TEXT_DEFAULTS)
    defaults = TEXT_DEFAULTS[model_type]
    hidden_size = fields.size("hidden_size", 4096)
    num_layers = fields.layers("num_hidden_layers", 32)
    num_heads = fields.size("num_attention_heads", 32)
    default_kv_heads = defaults.get("num_key_value_heads", num_heads)
    if "num_key_value_heads" in fields.values:  # null stands for as many as query heads
        default_kv_heads = num_heads
    num_kv_heads = fields.integer("num_key_value_heads", default_kv_heads)
    if num_heads % num_kv_heads:
        raise fields.error("num_key_value_heads", f"a divisor of the {num_heads} query heads")
    default_head_dim = defaults.get("head_dim")
    if "head_dim" not in fields and default_head_dim is None and hidden_size % num_heads:
        raise fields.error("hidden_size", f"a multiple of num_attention_heads ({num_heads})")
    head_dim = fields.size("head_dim", default_head_dim or hidden_size // num_heads)
    if head_dim % 2:
        raise CheckpointError(f"{fields.where}: head_dim is {head_dim}, expected an even number")
    max_position_embeddings = fields.integer(
        "max_position_embeddings", defaults["max_position_embeddings"], maximum=_MAX_CONTEXT
    )
    all_biases = model_type in ("llama", "qwen3") and fields.boolean("attention_bias", False)
    return TextConfig(
        model_type=cast(Literal["llama", "mistral", "qwen2", "qwen3"], model_type),
        vocab_size=fields.integer("vocab_size", defaults["vocab_size"]),
        hidden_size=hidden_size,
        intermediate_size=fields.size("intermediate_size", defaults["intermediate_size"]),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        max_position_embeddings=max_position_embeddings,
        hidden_act=fields.activation("hidden_act", "silu"),
        attention_bias=all_biases or model_type == "qwen2",
        output_bias=all_biases,
        mlp_bias=model_type == "llama" and fields.boolean("mlp_bias", False),
        head_norms=model_type == "qwen3",
        sliding_windows=_sliding_windows(fields, model_type, num_layers),
        rope=_parse_rope(fields, max_position_embeddings, head_dim),
    )


def _sliding_windows(
    fields: JsonFields, model_type: str, num_layers: int
) -> tuple[int | None, ...]:
    # An explicit null turns the window off; a missing field means 4096.
    window = fields.integer("sliding_window", None if "sliding_window" in fields.values else 4096)
    if model_type == "mistral":
        return (window,) * num_layers
    if model_type == "llama" or not fields.boolean("use_sliding_window", False):
        return (None,) * num_layers
    layer_types = fields.values.get("layer_types")
    if layer_types is None:
        num_full = fields.integer("max_window_layers", 28, minimum=0)
        return tuple(window if layer >= num_full else None for layer in range(num_layers))
    if not isinstance(layer_types, list) or len(layer_types) != num_layers:
        raise fields.error("layer_types", f"a list of {num_layers} layer types")
    if unknown := set(map(str, layer_types)) - {"full_attention", "sliding_attention"}:
        raise fields.error("layer_types", f"full_attention and sliding_attention, not {unknown}")
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types)


def _parse_rope(text: JsonFields, max_position_embeddings: int, head_dim: int) -> RopeConfig:
    rope = text.section("rope_scaling")
    if rope is None or not rope.values:
        rope = text.section("rope_parameters") or JsonFields({}, f"{text.where}: rope_parameters")
    for fields in (rope, text):
        if fields.number("partial_rotary_factor", 1.0) != 1.0:
            raise fields.error("partial_rotary_factor", "1: partial rotation is unsupported")
    name = "rope_type" if "rope_type" in rope else "type"
    kind = rope.choice(name, "default", ("default", "linear", "llama3", "mrope"))
    theta = rope.number("rope_theta", text.number("rope_theta", 10_000.0))
    sections = _sections(rope, head_dim)
    interleaved = rope.boolean("mrope_interleaved", False)
    if kind in ("default", "mrope"):  # the latter in older files: sections say so anyway
        if any(isinstance(value, dict) for value in rope.values.values()):
            raise CheckpointError(f"{rope.where}: one for each layer type is unsupported")
        return RopeConfig(theta, sections=sections, interleaved=interleaved)
    required_numbers = ("factor", "low_freq_factor", "high_freq_factor")
    for required in required_numbers[: 1 if kind == "linear" else 3]:
        if required not in rope:
            raise rope.error(required, f"a number, as rope type {kind} needs")
    if kind == "linear":
        factor = rope.number("factor", 1.0)
        return RopeConfig(theta, "linear", factor, sections=sections, interleaved=interleaved)
    return RopeConfig(
        theta,
        "llama3",
        factor=rope.number("factor", 1.0),
        low_freq_factor=rope.number("low_freq_factor", 1.0),
        high_freq_factor=rope.number("high_freq_factor", 4.0),
        original_max_position_embeddings=rope.integer(
            "original_max_position_embeddings", max_position_embeddings
        ),
        sections=sections,
        interleaved=interleaved,
    )


def _sections(rope: JsonFields, head_dim: int) -> tuple[int, ...]:
    name = "mrope_section"
    sections = rope.integers(name, ())
    if sections and (len(sections) != 3 or min(sections) < 0 or 2 * sum(sections) != head_dim):
        raise rope.error(name, f"three sizes that add up to half the head size {head_dim}")
    return sections


def check_divides(text: TextConfig, ranks: int) -> None:
    """See that a model's layers can be divided.

    Key-value heads are held by several ranks each, where these are a multiple of them.

    Raises:
        ConfigError: names what cannot be divided, and both numbers.
    """
    sizes = {
        "attention heads": text.num_heads,
        "key-value heads": text.num_kv_heads,
        "feed-forward columns": text.intermediate_size,
    }
    for name, size in sizes.items():
        if size % ranks and not (name == "key-value heads" and ranks % size == 0):
            raise ConfigError(
                f"--tensor-parallel {ranks}: the model has {size} {name}, which {ranks} does not "
                "divide"
            )
