"""Published sizes of Qwen-VL models: as many parameters as their pages on the Hub state."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from vlmbatch.models.family import load_model_config
from vlmbatch.models.qwen_vl.presets import CONFIGS

BILLIONS = {
    "qwen2-vl-2b": 2.21,
    "qwen2-vl-7b": 8.29,
    "qwen2.5-vl-3b": 3.75,
    "qwen2.5-vl-7b": 8.29,
    "qwen2.5-vl-32b": 33.45,
    "qwen2.5-vl-72b": 73.41,
    "qwen3-vl-2b": 2.13,
    "qwen3-vl-4b": 4.44,
    "qwen3-vl-8b": 8.77,
    "qwen3-vl-32b": 33.36,
}


def test_every_preset_is_counted() -> None:
    assert CONFIGS.keys() == BILLIONS.keys()


@pytest.mark.parametrize("name", BILLIONS)
def test_number_of_parameters(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[name]))
    config = load_model_config(tmp_path)
    with torch.device("meta"):
        theirs = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(tmp_path))
    theirs.tie_weights()
    billions = sum(each.numel() for each in theirs.parameters()) / 1e9
    assert abs(billions - BILLIONS[name]) < 0.006
    assert config.tie_word_embeddings == theirs.config.tie_word_embeddings
    assert config.text.hidden_size == theirs.config.text_config.hidden_size
