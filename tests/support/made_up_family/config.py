from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlmbatch.models.config import (
    ModelConfig,
    parse_dtype,
    parse_eos_token_ids,
    parse_image_token_id,
)
from vlmbatch.models.json_fields import JsonFields
from vlmbatch.models.text_config import parse_text_config


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeUpConfig(ModelConfig):
    tower_size: int
    max_side: int  # patches

    @property
    def feature_size(self) -> int:
        return self.image_embedding_size  # the tower's output has all levels


def parse_config(top: JsonFields, folder: Path) -> MadeUpConfig:
    fields = top.section("text_config") or JsonFields({}, "text_config")
    text = parse_text_config(fields)
    return MadeUpConfig(
        model_type="made_up",
        text=text,
        image_token_id=parse_image_token_id(top, 3, text.vocab_size),
        tie_word_embeddings=False,
        eos_token_ids=parse_eos_token_ids(folder, top, fields, text.model_type),
        dtype=parse_dtype(top, fields),
        deep_levels=2,
        tower_size=top.integer("tower_size", 16),
        max_side=top.integer("max_side", 20),
    )
