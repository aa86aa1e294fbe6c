"""``LLM``: one model, for Python programs."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Self, overload

from vlmbatch.api.images import ImageReader
from vlmbatch.api.loaded_model import LoadedModel
from vlmbatch.api.outputs import RequestOutput
from vlmbatch.api.requests import PromptInput, RequestReader, RowSource
from vlmbatch.config import (
    IMAGE_TIMEOUT_S,
    AttentionBackendName,
    Device,
    DType,
    EngineName,
    ImageDecoder,
    ImageInputType,
    ImageLimits,
    KVCacheDType,
    Quantize,
    SamplingParams,
    SessionConfig,
    typed,
)
from vlmbatch.config.option import build
from vlmbatch.models.chat import Message

_LIMITS = ImageLimits()

Sampling = SamplingParams | Iterable[SamplingParams]
Conversation = Sequence[Message]


class LLM:
    """Answers prompts about images with one model.

    >>> llm = LLM("samples/tiny-llava")
    >>> outputs = llm.generate({
    ...     "prompt": "USER: <image>\\nWhat number is written? ASSISTANT:",
    ...     "multi_modal_data": ImagePixelData("samples/images/1001000001.jpg"),
    ... })
    >>> outputs[0].outputs[0].text
    '92'
    >>> llm.close()

    ``model``: a checkpoint's folder or a Hugging Face id, at ``revision``. ``tokenizer`` and
    ``image_processor`` are taken from it, or from a folder or id of their own; ``chat_template`` is
    a Jinja file, or the name of one of ours ("llava-1.5"), in place of the model's own.
    ``image_token_id``, ``image_input_shape`` ("1,3,336,336" or four numbers) and
    ``image_feature_size`` are the model's; where given, they must agree with it. ``max_pixels``,
    ``min_pixels`` and ``longest_side`` say how large a model whose images vary sees them. With
    ``image_input_type`` "image_features" images are ``ImageFeatureData``, and the vision tower is
    not loaded. ``gpus`` ("all", 2 or "0,2,3") runs an engine on each of these GPUs, and
    ``replicas`` several on a CPU, in processes of their own; absent: one, in this process.
    ``tensor_parallel_size`` divides the model of each over so many GPUs, or processes on a CPU.
    ``engine`` "transformers" answers with the checkpoint's own class there, as "auto" does where we
    have no family for it. ``quantize`` "fp8" quantizes the decoder while it loads, and
    ``kv_cache_dtype`` "fp8" keys and values. ``None`` and "auto" elsewhere stand for what suits
    model and device.

    Each call keeps the engine full: all its requests are batched, and images are decoded and
    prompts tokenized while the model works. One call at a time: not from several threads, and not
    while an iterator of an earlier call is unfinished. ``close``, or leaving ``with LLM(...) as
    llm:``, frees the device's memory and ends the processes that decode images.

    Raises:
        ConfigError: an argument is invalid, contradicts the model, or asks for what is not here.
        CheckpointError: the model cannot be found, fetched or read.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        revision: str | None = None,
        tokenizer: str | os.PathLike[str] | None = None,
        image_processor: str | os.PathLike[str] | None = None,
        image_processor_revision: str | None = None,
        disable_image_processor: bool = False,
        image_input_type: ImageInputType = "pixel_values",
        image_token_id: int | None = None,
        image_input_shape: str | Sequence[int] | None = None,
        image_feature_size: int | None = None,
        strict_image_tokens: bool = False,
        max_pixels: int | None = None,
        min_pixels: int | None = None,
        longest_side: int | None = None,
        chat_template: str | os.PathLike[str] | None = None,
        engine: EngineName = "auto",
        dtype: DType = "auto",
        quantize: Quantize | None = None,
        device: Device = "auto",
        gpus: str | int | None = None,
        replicas: int | None = None,
        tensor_parallel_size: int = 1,
        attention_backend: AttentionBackendName = "auto",
        max_model_len: int | None = None,
        max_num_seqs: int | None = None,
        max_num_batched_tokens: int | None = None,
        kv_cache_tokens: int | None = None,
        kv_cache_dtype: KVCacheDType = "auto",
        enable_prefix_caching: bool = True,
        cpu_threads: int | None = None,
        max_image_pixels: int = _LIMITS.max_pixels,
        image_root: str | os.PathLike[str] | None = None,
        image_workers: int | None = None,
        image_decoder: ImageDecoder = "exact",
        image_timeout_s: float = IMAGE_TIMEOUT_S,
        host_memory: int | None = None,
    ) -> None:
        """Load the model.

        ``image_workers`` 0 decodes files in this process. ``image_decoder`` "scaled" decodes large
        JPEGs to a part of their pixels, "gpu" plain JPEGs on the GPU, where they are given as files
        or bytes. ``host_memory``: bytes that requests and images may take while they wait.
        """
        # Its parameters are the session's options: a test sees that they stay so.
        arguments = {name: value for name, value in locals().items() if name != "self"}
        config = build(SessionConfig, arguments, key="argument")
        self._model = LoadedModel(config)
        feature_grid = self._model.processor.feature_grid
        self._reader = RequestReader(
            ImageReader(image_input_type, feature_grid, config.image_limits)
        )

    @overload
    def generate(
        self,
        prompts: PromptInput | Sequence[PromptInput],
        sampling_params: Sampling | None = None,
        *,
        strict: bool = False,
    ) -> list[RequestOutput]: ...

    @overload
    def generate(
        self,
        prompts: Iterator[PromptInput],
        sampling_params: Sampling | None = None,
        *,
        strict: bool = False,
    ) -> Generator[RequestOutput]: ...

    def generate(
        self,
        prompts: PromptInput | Sequence[PromptInput] | Iterator[PromptInput],
        sampling_params: Sampling | None = None,
        *,
        strict: bool = False,
    ) -> list[RequestOutput] | Generator[RequestOutput]:
        """Answer one request or many; the results are in the order of the requests.

        A list gives a list. An iterator gives an iterator, lazily and in bounded memory: requests
        are read on a thread of its own, a few hundred ahead of the model, and results come as soon
        as those before them have come.

        >>> names = ["1001000001.jpg", "missing.jpg"]
        >>> requests = (
        ...     {
        ...         "prompt": "USER: <image>\\nWhat number is written? ASSISTANT:",
        ...         "multi_modal_data": ImagePixelData(f"samples/images/{name}"),
        ...     }
        ...     for name in names
        ... )
        >>> for output in llm.generate(requests, SamplingParams(max_tokens=8)):
        ...     print(output.error.code if output.error else output.outputs[0].text)
        92
        image_missing

        ``prompts``: text, or a dict of ``prompt`` and ``multi_modal_data``, or of ``messages`` as
        for ``chat``. ``multi_modal_data`` is one image or a list, or, as in vLLM,
        ``{"image": ...}`` with one or several of what ``ImagePixelData`` (``ImageFeatureData``)
        takes. A prompt has as many ``<image>`` tokens as its images have features, or one for each
        image.

        ``sampling_params``: one for all, whose seed each request varies by its position, as
        ``vlmbatch run`` does; or one for each, taken as it is. Greedy with at most 256 tokens where
        left out.

        A request that cannot be answered has an ``error`` and no ``outputs``, and all others are
        answered. With ``strict`` the first one that is met is raised.

        Raises:
            RowError: with ``strict``, what is wrong with a request.
            ConfigError: another number of ``sampling_params`` than of requests.
            TypeError: prompts or parameters of other types than these.
            UsageError: an earlier call is unfinished, or the model is closed.
        """
        outputs = self._answer(prompts, sampling_params, strict, in_order=True)
        return list(outputs) if isinstance(prompts, Sequence | Mapping) else outputs

    @overload
    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: Sampling | None = None,
        *,
        strict: bool = False,
    ) -> list[RequestOutput]: ...

    @overload
    def chat(
        self,
        messages: Iterator[Conversation],
        sampling_params: Sampling | None = None,
        *,
        strict: bool = False,
    ) -> Generator[RequestOutput]: ...

    def chat(
        self,
        messages: Conversation | Sequence[Conversation] | Iterator[Conversation],
        sampling_params: Sampling | None = None,
        *,
        strict: bool = False,
    ) -> list[RequestOutput] | Generator[RequestOutput]:
        """Answer one conversation or many, in OpenAI's form, by the model's chat template.

        >>> image = {"type": "image_url", "image_url": {"url": "samples/images/1001000001.jpg"}}
        >>> question = {"type": "text", "text": "What number is written?"}
        >>> outputs = llm.chat([{"role": "user", "content": [image, question]}])
        >>> outputs[0].outputs[0].text
        '92'

        An ``image_url`` is a ``data:`` URL or the path of a file; it, and the ``image`` of a part
        ``{"type": "image", "image": ...}``, may also be whatever ``ImagePixelData`` takes. All else
        is as for ``generate``.

        Raises:
            ConfigError: as by ``generate``; or the model has no chat template, and
                ``LLM(chat_template=...)`` gave none.
            RowError, TypeError, UsageError: as by ``generate``.
        """
        _ = self._model.processor.chat_template  # no request could be answered without one
        if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Iterable):
            raise TypeError(
                "messages must be a list of messages, or a list or iterator of such lists, got "
                f"{typed.shown(messages)}"
            )
        if not isinstance(messages, Sequence):
            return self.generate(
                ({"messages": conversation} for conversation in messages),
                sampling_params,
                strict=strict,
            )
        one = len(messages) > 0 and isinstance(messages[0], Mapping)
        conversations = [messages] if one else messages
        return self.generate(
            [{"messages": conversation} for conversation in conversations],
            sampling_params,
            strict=strict,
        )

    def stream(
        self,
        prompts: Iterable[PromptInput],
        sampling_params: Sampling | None = None,
        *,
        strict: bool = False,
    ) -> Generator[RequestOutput]:
        """Answer many requests; results come as they are finished, told apart by ``index``.

        >>> prompts = [f"USER: Say {word}. ASSISTANT:" for word in ("red", "blue", "green")]
        >>> sorted(output.index for output in llm.stream(prompts, SamplingParams(max_tokens=8)))
        [0, 1, 2]

        Takes and raises what ``generate`` does. Requests are read as those of an iterator.
        """
        return self._answer(prompts, sampling_params, strict, in_order=False)

    def answer(self, source: RowSource) -> Generator[RequestOutput]:
        """Answer rows that something else has read, in their order; otherwise as ``generate``."""
        return self._model.answer(source, in_order=True, strict=False)

    def close(self) -> None:
        """End unfinished iterators and free what the model holds. The object is of no use then.

        Raises:
            UsageError: another thread is in the middle of a call.
        """
        self._model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(
        self, requests: Iterable[object], sampling: Sampling | None, strict: bool, in_order: bool
    ) -> Generator[RequestOutput]:
        if isinstance(requests, str | Mapping):
            requests = [requests]
        source = RowSource(requests, sampling, self._reader.read)
        return self._model.answer(source, in_order=in_order, strict=typed.boolean("strict", strict))
