"""Our model of a LLaVA-NeXT or LLaVA-OneVision checkpoint, without an engine."""

from __future__ import annotations

from family_ours import FamilyOurs
from llava_next_case import ROWS, SIZES
from llava_next_checkpoints import IMAGE_TOKEN_ID


class Ours(FamilyOurs):
    rows, sizes, image_token_id = ROWS, SIZES, IMAGE_TOKEN_ID
