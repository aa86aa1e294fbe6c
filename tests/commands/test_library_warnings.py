"""What libraries warn of, as far as it is any news to the user."""

from __future__ import annotations

import subprocess
import sys

import pytest
from command_line import environment

WARN = """
import sys, warnings
from vlmbatch import log
log.configure(verbose=int(sys.argv[1]))
warnings.warn_explicit("Corrupt EXIF data", UserWarning, "Tiff.py", 1, "PIL.TiffImagePlugin")
warnings.warn_explicit("ours", UserWarning, "x.py", 1, "vlmbatch.x")
"""


@pytest.mark.parametrize(("verbose", "shown"), [("0", False), ("1", False), ("2", True)])
def test_pillow_is_heard_only_when_libraries_are_asked_for(verbose: str, shown: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WARN, verbose], env=environment(), capture_output=True, text=True
    )
    assert ("Corrupt EXIF data" in done.stderr) == shown
    assert "ours" in done.stderr
