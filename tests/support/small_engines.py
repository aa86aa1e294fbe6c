"""Small engines in all the ways in which steps are cut up: by size and preemption."""

from __future__ import annotations

from hypothesis import strategies as st

# Arguments of ``small_engine``.
SMALL_ENGINES = st.fixed_dictionaries(
    {
        "max_batched_tokens": st.integers(1, 40),
        "max_num_seqs": st.integers(1, 6),
        "kv_cache_tokens": st.integers(48, 120),
        "ahead": st.booleans(),
    }
)
