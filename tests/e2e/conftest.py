from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
# The corpus' scripts, and those of the samples, import one another by their bare names.
sys.path[:0] = [str(TESTS / "corpus"), str(TESTS.parent / "samples")]
