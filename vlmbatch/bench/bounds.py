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


@dataclass(frozen=True, slots=True)
class ModelCosts:
    """Costs of a model's parts, in floating-point operations and bytes.

    ``token_flops``: the decoder's layers, without attention between tokens; ``pair_flops``: all
    layers' attention of one query and one key; ``head_flops``: one token's logits;
    ``decoder_bytes``: its weights with the embedding table; ``step_bytes``: those of them that
    every decode step reads.
    """

    token_flops: int
    pair_flops: int
    head_flops: int
    image_flops: int  # tower and projector
    tower_flops: int
    kv_bytes_per_token: int
    decoder_bytes: int
    step_bytes: int


def model_costs(config: ModelConfig, itemsize: int) -> ModelCosts:
    """The costs of ``config`` with weights and KV cache of ``itemsize`` bytes a number."""
    text = config.text
    query_size = text.num_heads * text.head_dim
    kv_size = text.num_kv_heads * text.head_dim
    layer_weights = text.hidden_size * (
        2 * query_size  # query and output
        + 2 * kv_size
        + 3 * text.intermediate_size  # gate, up and down
    )
    decoder_weights = text.num_layers * layer_weights
    head_weights = text.vocab_size * text.hidden_size
    tables = 1 if config.tie_word_embeddings else 2
    tower_flops = _tower_flops(config)
    features = config.vision.hidden_size * len(config.feature_layers)
    projector_weights = (features + text.hidden_size) * text.hidden_size
    return ModelCosts(
        token_flops=2 * decoder_weights,
        pair_flops=4 * query_size * text.num_layers,
        head_flops=2 * head_weights,
        image_flops=tower_flops + 2 * config.image_feature_size * projector_weights,
        tower_flops=tower_flops,
        kv_bytes_per_token=2 * kv_size * text.num_layers * itemsize,
        decoder_bytes=(decoder_weights + tables * head_weights) * itemsize,
        step_bytes=(decoder_weights + head_weights) * itemsize,
    )


def _tower_flops(config: ModelConfig) -> int:
    """The vision tower on one image, up to the last layer whose features are used."""
    vision = config.vision
    tokens = vision.num_patches + (vision.model_type == "clip_vision_model")
    layer_weights = vision.hidden_size * (4 * vision.hidden_size + 2 * vision.intermediate_size)
    layer = 2 * tokens * layer_weights + 4 * tokens**2 * vision.hidden_size
    patches = 2 * vision.num_patches * 3 * vision.patch_size**2 * vision.hidden_size
    return max(config.feature_layers) * layer + patches


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
    config: ModelConfig,
    itemsize: int,
    kv_cache_tokens: int,
    rates: DeviceRates,
) -> Bounds:
    """The bounds of ``rows`` rows of a workload, on a device of such ``rates``.

    Rows that share an image compute its tokens once and read their KV once a step.
    """
    costs = model_costs(config, itemsize)
    image, text, questions = config.image_feature_size, workload.text_tokens, workload.questions
    prompt = image + text
    steps = workload.max_tokens - 1  # the first token comes with the prefill
    generated = range(1, workload.max_tokens)
    image_tokens = costs.token_flops * image + costs.pair_flops * _causal_pairs(0, image)
    row_flops = (
        (costs.image_flops + image_tokens) / questions
        + costs.token_flops * (text + steps)
        + costs.pair_flops * _causal_pairs(image, prompt + steps)
        + costs.head_flops * workload.max_tokens
    )
    own_tokens = image / questions + text
    decode_batch = max(1, min(rows, int(kv_cache_tokens / (own_tokens + workload.max_tokens))))
    kv_tokens = sum(own_tokens + count for count in generated)
    row_bytes = costs.kv_bytes_per_token * kv_tokens + costs.step_bytes * steps / decode_batch
    return Bounds(
        row_flops,
        row_bytes,
        decode_batch,
        rates.flops_per_second / row_flops,
        rates.bytes_per_second / row_bytes,
    )


def _causal_pairs(start: int, end: int) -> int:
    """Queries ``start`` to ``end``, each with itself and all keys before it."""
    return (end * (end + 1) - start * (start + 1)) // 2
