"""What a workload costs at the least: floating-point operations and bytes, from the model's config.

Two physical bounds follow from a device's rates: one as if memory were free, one as if arithmetic
were. Counted are matrix products and attention (a multiply-add is two operations), reads of the KV
cache while decoding, and one read of the weights for each decode step of a batch as large as the
KV pool holds. All else is left out, so that no program can do better.
"""

from __future__ import annotations

from dataclasses import dataclass

from vlmbatch.bench.device_rates import DeviceRates
from vlmbatch.bench.workloads import Workload
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


@dataclass(frozen=True, slots=True)
class Bounds:
    """Costs of a row (the mean where rows share images), and the rows a second they allow."""

    row_flops: float
    row_bytes: float
    decode_batch: int
    arithmetic_rows_per_second: float
    bytes_rows_per_second: float

    @property
    def serial_rows_per_second(self) -> float:
        """Rows a second when arithmetic and reads take turns."""
        return 1 / (1 / self.arithmetic_rows_per_second + 1 / self.bytes_rows_per_second)


def workload_bounds(
    workload: Workload,
    rows: int,
    costs: ModelCosts,
    image_tokens: int,
    kv_cache_tokens: int,
    rates: DeviceRates,
) -> Bounds:
    """The bounds of ``rows`` rows of a workload, on a device of such ``rates``.

    ``image_tokens``: that an image takes, of the size that ``costs`` are for.
    Rows that share an image compute its tokens once and read their KV once a step.
    """
    image, text, questions = image_tokens, workload.text_tokens, workload.questions
    prompt = image + text
    steps = workload.max_tokens - 1  # the first token comes with the prefill
    generated = range(1, workload.max_tokens)
    layer_flops = costs.token_flops * (image / questions + text + steps)
    other_flops = (
        (costs.image_flops + costs.pair_flops * _causal_pairs(0, image)) / questions
        + costs.pair_flops * _causal_pairs(image, prompt + steps)
        + costs.head_flops * workload.max_tokens
    )
    layer_rate = rates.flops_per_second
    if costs.is_quantized and rates.fp8_flops_per_second is not None:
        layer_rate = rates.fp8_flops_per_second
    own_tokens = image / questions + text
    decode_batch = max(1, min(rows, int(kv_cache_tokens / (own_tokens + workload.max_tokens))))
    kv_tokens = sum(own_tokens + count for count in generated)
    row_bytes = costs.kv_bytes_per_token * kv_tokens + costs.step_bytes * steps / decode_batch
    return Bounds(
        layer_flops + other_flops,
        row_bytes,
        decode_batch,
        1 / (layer_flops / layer_rate + other_flops / rates.flops_per_second),
        rates.bytes_per_second / row_bytes,
    )


def _causal_pairs(start: int, end: int) -> int:
    """Queries ``start`` to ``end``, each with itself and all keys before it."""
    return (end * (end + 1) - start * (start + 1)) // 2
