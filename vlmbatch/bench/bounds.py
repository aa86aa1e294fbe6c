"""What a workload costs at the least: floating-point operations and bytes, from the model's config.

Two physical bounds follow from a device's rates: one as if memory were free, one as if arithmetic
were. Counted are matrix products and attention (a multiply-add is two operations), reads of the KV
cache while decoding, and one read of the weights for each decode step of a batch as large as the
KV pool holds. All else is left out, so that no program can do better.
"""

from __future__ import annotations

from dataclasses import dataclass

from vlmbatch.bench.workloads import Workload
from vlmbatch.costs.model import ModelCosts, causal_pairs
from vlmbatch.costs.rates import DeviceRates


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
        (costs.image_flops + costs.pair_flops * causal_pairs(0, image)) / questions
        + costs.pair_flops * causal_pairs(image, prompt + steps)
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
