from __future__ import annotations

from collections.abc import Iterator

import pytest
from fuzzing import free_engine


@pytest.fixture(scope="module")
def free_model() -> Iterator[None]:
    """Rows are answered by a model that costs nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vlmbatch.engine.loading.build_engine", free_engine)
        yield
