"""Values of every type, as callers who know nothing may give them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from vlmbatch import ImagePixelData, SamplingParams

SCALARS: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.builds(object)
    | st.builds(np.array, st.integers(-9, 9))
    | st.builds(np.int64, st.integers(0, 9))
    | st.builds(np.float32, st.floats(0, 1))
    | st.builds(torch.tensor, st.integers(0, 9))
    | st.builds(Path, st.sampled_from(["none.jpg", ""]))
    | st.builds(SamplingParams, max_tokens=st.integers(1, 2))
)
ANYTHING: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.sets(st.integers(), max_size=2)
        | st.builds(ImagePixelData, inner)
        | st.dictionaries(
            st.sampled_from(["prompt", "multi_modal_data", "messages", "role", "content", "type"])
            | st.sampled_from(["image", "image_url", "text"]),
            inner | st.sampled_from(["image", "text", "user", "USER: <image>"]),
            max_size=3,
        )
    ),
    max_leaves=6,
)
