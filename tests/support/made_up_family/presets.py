from __future__ import annotations

from typing import Any

from made_up_family.config import MadeUpConfig

CONFIGS: dict[str, dict[str, Any]] = {}


def processor_config(config: MadeUpConfig) -> dict[str, Any]:
    """The family's image processor has nothing to read."""
    return {}
