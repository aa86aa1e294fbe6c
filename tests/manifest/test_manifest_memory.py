"""Memory does not grow with the manifest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

# Both passes over two manifests in a process of its own: by how much the second raises the peak.
# (VmHWM: getrusage's peak would start from that of the process that runs the tests.)
MEASURE = """
import re, sys
from pathlib import Path
from vlmbatch.config import ManifestConfig, SamplingParams
from vlmbatch.manifest.open import open_manifest

def peak_kib():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

def passes(path):
    manifest = open_manifest(ManifestConfig(path), SamplingParams())
    num_rows = manifest.scan().num_rows
    assert num_rows == sum(1 for row in manifest.rows())

passes(sys.argv[1])
before = peak_kib()
passes(sys.argv[2])
print(peak_kib() - before)
"""


def growth_mib(small: Path, large: Path) -> float:
    command = [sys.executable, "-c", MEASURE, str(small), str(large)]
    return int(subprocess.run(command, check=True, capture_output=True).stdout) / 1024


def jsonl(path: Path, rows: int) -> Path:
    with path.open("w") as file:
        file.writelines(
            f'{{"id": "row-{n}", "prompt": "What?", "image": "i/{n}.jpg", "x": "{n:040}"}}\n'
            for n in range(rows)
        )
    return path


def test_jsonl(tmp_path):
    large = jsonl(tmp_path / "large.jsonl", 35_000)
    assert large.stat().st_size > 3.5 * 2**20
    # 3.7 MiB are not rows', the rest is under 30 bytes for each of them.
    assert growth_mib(jsonl(tmp_path / "small.jsonl", 10_000), large) < 4.8


@pytest.mark.parametrize("row_group_size", [100, 10_000])
def test_parquet_with_embedded_images(tmp_path, row_group_size):
    def parquet(path: Path, rows: int) -> Path:
        image = {"bytes": bytes(100_000), "path": "i.jpg"}
        schema = pa.schema(
            [
                ("prompt", pa.string()),
                ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ]
        )
        table = pa.Table.from_pylist([{"prompt": "p", "image": image}] * rows, schema)
        pq.write_table(
            table,
            path,
            row_group_size=row_group_size,
            write_batch_size=16,  # pages of 1.6 MB
            use_dictionary=False,
            compression="none",
        )
        return path

    small, large = parquet(tmp_path / "s.parquet", 100), parquet(tmp_path / "l.parquet", 1300)
    assert large.stat().st_size > 120 * 2**20
    assert growth_mib(small, large) < 80
