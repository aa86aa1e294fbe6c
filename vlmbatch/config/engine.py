"""Where and how the model runs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from vlmbatch.config.option import Opt, check_bounds
from vlmbatch.errors import ConfigError

DType = Literal["auto", "float32", "bfloat16", "float16"]
Device = Literal["auto", "cuda", "cpu"]
AttentionBackendName = Literal["auto", "flash-attn", "triton", "torch"]
Quantize = Literal["fp8"]
KVCacheDType = Literal["auto", "fp8"]
EngineName = Literal["auto", "vlmbatch", "transformers"]

_model = partial(Opt, panel="Model")
_engine = partial(Opt, panel="Engine")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Limits of the engine. ``None`` and "auto" are resolved from the device before use.

    Raises:
        ConfigError: a value out of range.
    """

    engine: Annotated[
        EngineName,
        _model(
            "NAME",
            "vlmbatch; transformers, slower, for nearly every model; or auto: vlmbatch where it "
            "has the model.",
        ),
    ] = "auto"
    dtype: Annotated[DType, _model("NAME", "auto, float32, bfloat16 or float16.")] = "auto"
    quantize: Annotated[
        Quantize | None,
        _model(
            "NAME",
            "fp8: quantize the decoder's linear layers while they load; absent: weights stay as "
            "the checkpoint has them.",
        ),
    ] = None
    device: Annotated[Device, _model("NAME", "auto, cuda or cpu.")] = "auto"
    gpus: Annotated[
        str | None,
        _engine(
            "GPUS",
            "An engine on each of these GPUs: all, a number of them, or a list such as 0,2,3; "
            "absent: all, of a server one.",
            unit="gpus",
        ),
    ] = None
    replicas: Annotated[
        int | None, _engine("N", "Engines on a CPU, which share its cores; absent: 1.", minimum=1)
    ] = None
    tensor_parallel: Annotated[
        int,
        _engine(
            "N",
            "GPUs that one engine divides the model over, where one cannot hold it.",
            argument="tensor_parallel_size",
            minimum=1,
        ),
    ] = 1
    attention_backend: Annotated[
        AttentionBackendName, _model("NAME", "auto, flash-attn, triton or torch.")
    ] = "auto"
    max_num_seqs: Annotated[
        int | None,
        _engine("N", "Rows in one step; absent: what suits the device.", minimum=1),
    ] = None
    max_batched_tokens: Annotated[
        int | None,
        _engine(
            "N",
            "Tokens in one step; absent: what suits the device.",
            argument="max_num_batched_tokens",
            minimum=1,
        ),
    ] = None
    kv_cache_tokens: Annotated[
        int | None, _engine("N", "Size of the KV cache; absent: what memory allows.", minimum=1)
    ] = None
    kv_cache_dtype: Annotated[
        KVCacheDType,
        _engine(
            "NAME",
            "auto: what the model computes in; fp8: e4m3, which has room for twice the tokens.",
        ),
    ] = "auto"
    max_model_len: Annotated[
        int | None, _engine("N", "Context length; absent: the model's own.", minimum=1)
    ] = None
    enable_prefix_caching: Annotated[
        bool,
        _engine(
            "",
            "Compute a prefix that rows share anew for each of them.",
            flag="--no-prefix-caching",
            unsets=True,
            argument="enable_prefix_caching",
        ),
    ] = True
    cuda_graphs: bool = True  # decode steps on a GPU are captured and replayed
    cpu_threads: Annotated[
        int | None,
        _engine(
            "N", "Threads of an engine on the CPU; None: torch's own choice.", python_only=True
        ),
    ] = None
    random_weights: bool = False  # to measure speed: no weights are read

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.gpus is None:
            return
        if self.device == "cpu":
            raise ConfigError(
                f"--gpus {self.gpus} with --device cpu, which uses none: --replicas N is for CPUs"
            )
        if self.replicas is not None:
            raise ConfigError(
                f"--gpus {self.gpus} with --replicas {self.replicas}, which is for CPUs: give one "
                "of them"
            )

    @property
    def several_asked_for(self) -> bool:
        """Whether it says how many engines, or parts of them, there are to be."""
        return self.gpus is not None or self.replicas is not None or self.tensor_parallel > 1
