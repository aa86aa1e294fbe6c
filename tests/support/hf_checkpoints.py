"""Tiny random checkpoints of classes that we have no family for, made and saved by transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from byte_tokenizer import byte_tokenizer

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
EOS_ID = 2
CONTEXT = 512
TEMPLATE = """\
{% for message in messages %}<s>{{ message['role'] }}: {% for part in message['content'] %}\
{% if part['type'] == 'image' %}IMAGE_TOKEN{% else %}{{ part['text'] }}{% endif %}{% endfor %}
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""


class Kind(NamedTuple):
    """``image_token``: what the processor takes for an image in prompts; "" puts it first itself.

    ``chats``: whether there is a chat template. ``text_only`` and ``several``: what rows it takes.
    """

    make: Callable[[Path], None]
    image_token: str
    chats: bool = False
    text_only: bool = True
    several: bool = True


def make_tokenizer(tokens: Sequence[str], named: Mapping[str, str]) -> Any:
    """A byte-level tokenizer: a token for each byte, beside ``tokens``."""
    special = [PAD, BOS, EOS, *tokens]
    backend = byte_tokenizer(special, first=BOS)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens=dict(named),
    )


def text_sizes(vocab_size: int, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **more,
    }


def vision_sizes(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        **more,
    }


def idefics3(folder: Path) -> None:
    rows = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokens = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *rows]
    tokenizer = make_tokenizer(tokens, {})
    config = transformers.Idefics3Config(
        text_config={"model_type": "llama", **text_sizes(len(tokenizer))},
        vision_config=vision_sizes(image_size=16, patch_size=4),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    images = transformers.Idefics3ImageProcessorPil(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 16}
    )
    processor = transformers.Idefics3Processor(
        images, tokenizer, image_seq_len=4, chat_template=template("<image>")
    )
    save(folder, config, processor)


def idefics2(folder: Path) -> None:
    tokens = ["<image>", "<fake_token_around_image>", "<end_of_utterance>"]
    tokenizer = make_tokenizer(tokens, {})
    config = transformers.Idefics2Config(
        text_config={"model_type": "mistral", **text_sizes(len(tokenizer))},
        vision_config=vision_sizes(image_size=16, patch_size=4),
        perceiver_config={
            "hidden_size": 32,
            "resampler_n_latents": 3,
            "resampler_depth": 1,
            "resampler_n_heads": 2,
            "resampler_head_dim": 8,
            "num_key_value_heads": 1,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    images = transformers.Idefics2ImageProcessorPil(
        size={"longest_edge": 16, "shortest_edge": 8}, do_image_splitting=False
    )
    processor = transformers.Idefics2Processor(
        images, tokenizer, image_seq_len=3, chat_template=template("<image>")
    )
    save(folder, config, processor)


def gemma3(folder: Path) -> None:
    named = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>"}
    named["eoi_token"] = "<end_of_image>"
    tokenizer = make_tokenizer(list(named.values()), named)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in named.items()}
    config = transformers.Gemma3Config(
        text_config=text_sizes(
            len(tokenizer), head_dim=8, sliding_window=24, query_pre_attn_scalar=8
        ),
        vision_config=vision_sizes(image_size=16, patch_size=4),
        mm_tokens_per_image=4,
        boi_token_index=ids["boi_token"],
        eoi_token_index=ids["eoi_token"],
        image_token_index=ids["image_token"],
    )
    images = transformers.Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    processor = transformers.Gemma3Processor(
        images, tokenizer, image_seq_length=4, chat_template=template("<start_of_image>")
    )
    save(folder, config, processor)


def paligemma(folder: Path) -> None:
    tokenizer = make_tokenizer(["<image>"], {"image_token": "<image>"})
    images = transformers.SiglipImageProcessorPil(size={"height": 16, "width": 16})
    images.image_seq_length = 16
    processor = transformers.PaliGemmaProcessor(images, tokenizer)
    config = transformers.PaliGemmaConfig(
        text_config={"model_type": "gemma", **text_sizes(len(tokenizer), head_dim=8)},
        vision_config={
            "model_type": "siglip_vision_model",
            **vision_sizes(image_size=16, patch_size=4, projection_dim=32),
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=32,
        hidden_size=32,
        vocab_size=len(tokenizer),
    )
    save(folder, config, processor)


def mllama(folder: Path) -> None:
    tokenizer = make_tokenizer(["<|image|>", "<|python_tag|>"], {"image_token": "<|image|>"})
    config = transformers.MllamaConfig(
        text_config=text_sizes(
            len(tokenizer),
            num_hidden_layers=3,
            cross_attention_layers=[1],
            rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        ),
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "vision_output_dim": 48,
            "image_size": 16,
            "patch_size": 4,
            "max_num_tiles": 2,
            "intermediate_layers_indices": [0],
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"),
    )
    images = transformers.MllamaImageProcessorPil(
        size={"height": 16, "width": 16}, max_image_tiles=2
    )
    processor = transformers.MllamaProcessor(images, tokenizer, chat_template=template("<|image|>"))
    save(folder, config, processor)


def aya_vision(folder: Path) -> None:
    tokens = ["<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>"]
    tokens += ["<|IMG_LINE_BREAK|>", "TILE_GLOBAL", *(f"TILE_{number}" for number in range(1, 5))]
    tokenizer = make_tokenizer(tokens, {})
    config = transformers.AyaVisionConfig(
        text_config={"model_type": "cohere2", **text_sizes(len(tokenizer), sliding_window=24)},
        vision_config={
            "model_type": "siglip_vision_model",
            **vision_sizes(image_size=16, patch_size=4),
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"),
        downsample_factor=2,
    )
    images = transformers.GotOcr2ImageProcessorPil(
        size={"height": 16, "width": 16}, crop_to_patches=True, max_patches=3
    )
    processor = transformers.AyaVisionProcessor(
        images,
        tokenizer,
        patch_size=4,
        img_size=16,
        downsample_factor=2,
        chat_template=template("<image>"),
    )
    save(folder, config, processor)


def got_ocr2(folder: Path) -> None:
    tokens = ["<imgpad>", "<img>", "</img>", "<|im_start|>", "<|im_end|>"]
    tokenizer = make_tokenizer(tokens, {})
    config = transformers.GotOcr2Config(
        text_config={"model_type": "qwen2", **text_sizes(len(tokenizer))},
        vision_config={
            "hidden_size": 24,
            "output_channels": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 256,
            "patch_size": 4,
            "mlp_dim": 40,
            "window_size": 4,
            "global_attn_indexes": [],
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<imgpad>"),
        image_seq_length=256,
    )
    images = transformers.GotOcr2ImageProcessorPil(size={"height": 256, "width": 256})
    processor = transformers.GotOcr2Processor(images, tokenizer)
    save(folder, config, processor)


def chameleon(folder: Path) -> None:
    named = {"image_token": "<image>", "boi_token": "<racm3:break>", "eoi_token": "<eoss>"}
    codes = ["IMGIMGA" + "".join("ABCDEFGHIJ"[int(d)] for d in str(n)) + "Z" for n in range(16)]
    tokenizer = make_tokenizer([*named.values(), *codes], named)
    vocabulary = tokenizer.get_vocab()
    config = transformers.ChameleonConfig(
        **text_sizes(len(tokenizer)),
        vq_config={
            "embed_dim": 8,
            "num_embeddings": 16,
            "latent_channels": 8,
            "resolution": 16,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
        },
        vocabulary_map={name: vocabulary[name] for name in [*named.values(), *codes]},
    )
    images = transformers.ChameleonImageProcessorPil(
        size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}
    )
    processor = transformers.ChameleonProcessor(images, tokenizer, image_seq_length=16)
    save(folder, config, processor)


def blip_2(folder: Path) -> None:
    tokenizer = make_tokenizer(["<image>"], {})
    config = transformers.Blip2Config(
        vision_config=vision_sizes(image_size=16, patch_size=4),
        qformer_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "encoder_hidden_size": 24,
        },
        text_config={
            "model_type": "opt",
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": CONTEXT,
            "word_embed_proj_dim": 32,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    images = transformers.BlipImageProcessorPil(size={"height": 16, "width": 16})
    processor = transformers.Blip2Processor(images, tokenizer, num_query_tokens=4)
    save(folder, config, processor)


KINDS = {
    "aya_vision": Kind(aya_vision, "<image>", chats=True),
    "blip-2": Kind(blip_2, "", text_only=False, several=False),
    "chameleon": Kind(chameleon, "<image>"),
    "gemma3": Kind(gemma3, "<start_of_image>", chats=True),
    "got_ocr2": Kind(got_ocr2, "<imgpad>", text_only=False, several=False),
    "idefics2": Kind(idefics2, "<image>", chats=True),
    "idefics3": Kind(idefics3, "<image>", chats=True),
    "mllama": Kind(mllama, "<|image|>", chats=True),
    "paligemma": Kind(paligemma, "<image>", text_only=False),
}


def template(image_token: str) -> str:
    return TEMPLATE.replace("IMAGE_TOKEN", image_token)


def save(folder: Path, config: Any, processor: Any) -> None:
    """Write a model with random weights, large enough that each tensor matters."""
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
