"""What the parts of a model cost at the least, from its configuration."""

from __future__ import annotations

from dataclasses import dataclass

from vlmbatch.models.config import ModelConfig
from vlmbatch.models.family import family_of
from vlmbatch.types import ImageGrid


@dataclass(frozen=True, slots=True)
class ModelCosts:
    """Costs of a model's parts, in floating-point operations and bytes.

    ``token_flops``: the decoder's layers, without attention between tokens; ``pair_flops``: all
    layers' attention of one query and one key; ``head_flops``: one token's logits;
    ``is_quantized``: the layers' weights are of one byte, and their products perhaps in e4m3;
    ``decoder_bytes``: its weights with the embedding table; ``step_bytes``: those of them that
    every decode step reads.
    """

    token_flops: int
    is_quantized: bool
    pair_flops: int
    head_flops: int
    image_flops: int  # tower and projector
    tower_flops: int
    kv_bytes_per_token: int
    decoder_bytes: int
    step_bytes: int


def model_costs(
    config: ModelConfig, itemsize: int, grid: ImageGrid, kv_itemsize: int | None = None
) -> ModelCosts:
    """The costs of ``config`` with weights and KV cache of ``itemsize`` bytes a number, but for
    quantized weights of one.

    ``grid``: of the images. ``kv_itemsize``: of the KV cache, where it is another.
    """
    text = config.text
    query_size = text.num_heads * text.head_dim
    kv_size = text.num_kv_heads * text.head_dim
    layer_weights = text.hidden_size * (
        2 * query_size  # query and output
        + 2 * kv_size
        + 3 * text.intermediate_size  # gate, up and down
    )
    decoder_weights = text.num_layers * layer_weights
    decoder_itemsize = itemsize if config.quantization is None else 1
    head_weights = text.vocab_size * text.hidden_size
    tables = 1 if config.tie_word_embeddings else 2
    image = family_of(config).image_flops(config, grid)
    return ModelCosts(
        token_flops=2 * decoder_weights,
        is_quantized=config.quantization is not None,
        pair_flops=4 * query_size * text.num_layers,
        head_flops=2 * head_weights,
        image_flops=image.tower + image.projector,
        tower_flops=image.tower,
        kv_bytes_per_token=2 * kv_size * text.num_layers * (kv_itemsize or itemsize),
        decoder_bytes=decoder_weights * decoder_itemsize + tables * head_weights * itemsize,
        step_bytes=decoder_weights * decoder_itemsize + head_weights * itemsize,
    )


def causal_pairs(start: int, end: int) -> int:
    """Queries ``start`` to ``end``, each with itself and all keys before it."""
    return (end * (end + 1) - start * (start + 1)) // 2
