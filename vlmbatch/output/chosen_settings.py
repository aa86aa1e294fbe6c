"""The settings of a run that are not as they are by default, for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from vlmbatch.config import SamplingParams


def chosen_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """By name, of the ``settings`` of a run's record, without the digests among them."""
    defaults = json.loads(json.dumps(asdict(SamplingParams())))
    chosen = {
        name: json.dumps(value, ensure_ascii=False)
        for name, value in settings.get("sampling", {}).items()
        if value != defaults.get(name)
    }
    chosen |= {
        name: str(settings[name]) for name in ("limit", "max_model_len") if settings.get(name)
    }
    if settings.get("dtype", "auto") != "auto":
        chosen["dtype"] = settings["dtype"]
    return chosen
