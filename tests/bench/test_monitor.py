"""What a run takes from the machine."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from vlmbatch.bench.gpu_usage import GpuUsage
from vlmbatch.bench.monitor import Monitor, resident_bytes

CHILD_BYTES = 200_000_000
HOLD = f"""
import sys
held = bytearray({CHILD_BYTES})
for start in range(0, len(held), 4096):
    held[start] = 1
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="there is no /proc here")
def test_memory_of_child_processes_counts() -> None:
    before = resident_bytes()
    with Monitor(torch.device("cpu")) as monitor:
        pipe = subprocess.PIPE
        with subprocess.Popen([sys.executable, "-c", HOLD], stdin=pipe, stdout=pipe) as child:
            assert child.stdout is not None
            child.stdout.readline()
            assert resident_bytes() > before + CHILD_BYTES
            time.sleep(0.6)  # a look or more
    assert monitor.peak_rss > before + CHILD_BYTES
    assert resident_bytes() < before + CHILD_BYTES // 2
    assert monitor.gpu_share is None


def test_processor_time_of_child_processes_counts() -> None:
    with Monitor(torch.device("cpu")) as idle:
        time.sleep(0.3)
    code = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    with Monitor(torch.device("cpu")) as busy:
        subprocess.run([sys.executable, "-c", code], check=True)
    assert 0 <= idle.cpu_share < busy.cpu_share <= 1.05


def test_a_gpu_that_its_driver_does_not_know_has_no_share() -> None:
    with GpuUsage("GPU-00000000-0000-0000-0000-000000000000") as gpu:
        assert gpu.read() is None
