"""A tiny random checkpoint of JoyCaption's shape: LLaVA of SigLIP2 and Llama 3.1.

Made and saved by transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from byte_tokenizer import byte_tokenizer

IMAGE = "<|reserved_special_token_69|>"
AROUND = ("<|reserved_special_token_70|>", "<|reserved_special_token_71|>")
SPECIAL_TOKENS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>"]
SPECIAL_TOKENS += ["<|end_header_id|>", "<|eot_id|>", IMAGE, *AROUND]
IMAGE_TOKEN_ID = SPECIAL_TOKENS.index(IMAGE)
EOS_TOKEN_ID = SPECIAL_TOKENS.index("<|eot_id|>")
SIDE, PATCH = 24, 7  # some pixels are over, as are those of 384 in patches of 14
IMAGE_TOKENS = (SIDE // PATCH) ** 2
# As the published one, it takes strings alone, and writes the image before every user's.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{% if message['role'] == 'user' %}{{ '"
    + AROUND[0]
    + IMAGE
    + AROUND[1]
    + "' }}{% endif %}{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
PREPROCESSOR: dict[str, Any] = {
    "image_processor_type": "SiglipImageProcessor",
    "do_convert_rgb": None,
    "do_resize": True,
    "size": {"height": SIDE, "width": SIDE},
    "resample": 2,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}


def make_checkpoint(folder: Path) -> Any:
    """Write a checkpoint with its tokenizer and processor; return transformers' own model."""
    torch.manual_seed(0)
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(
            vocab_size=len(SPECIAL_TOKENS) + 256,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=1,
            max_position_embeddings=512,
            rms_norm_eps=1e-5,
            bos_token_id=0,
            eos_token_id=EOS_TOKEN_ID,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        ),
        vision_config=transformers.SiglipVisionConfig(
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=SIDE,
            patch_size=PATCH,
        ),
        image_token_index=IMAGE_TOKEN_ID,
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="full",
    )
    model = transformers.LlavaForConditionalGeneration._from_config(
        config, attn_implementation="eager", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # large enough that every tensor matters
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model.generation_config.eos_token_id = [1, EOS_TOKEN_ID]
    model.generation_config.pad_token_id = 1
    model.save_pretrained(folder)
    _write_tokenizer(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return model


def _write_tokenizer(folder: Path) -> None:
    """Write a byte-level tokenizer that puts the first token before every text, as Llama 3's."""
    first = SPECIAL_TOKENS[0]
    tokenizer = byte_tokenizer(SPECIAL_TOKENS, first)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": first, "eos_token": "<|eot_id|>"}
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
