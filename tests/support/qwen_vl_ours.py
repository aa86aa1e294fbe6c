"""Our model of a Qwen-VL checkpoint, without an engine."""

from __future__ import annotations

from family_ours import FamilyOurs
from qwen_vl_case import ROWS, SIZES
from qwen_vl_checkpoints import IMAGE_TOKEN_ID


class Ours(FamilyOurs):
    rows, sizes, image_token_id = ROWS, SIZES, IMAGE_TOKEN_ID
