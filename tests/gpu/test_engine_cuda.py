"""The whole engine on the GPU: logits within bf16's own error, answers equal to the CPU's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from paged_batch import forward_in_chunks
from parity_pair import make_pair

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("backend", ["flash-attn", "triton"])
@pytest.mark.parametrize("chunk", [10_000, 33])
@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_logits_are_as_close_to_float32_as_hugging_face_in_bf16(
    kind: str, tower: str, chunk: int, backend: str, tmp_path: Path
) -> None:
    pair = make_pair(kind, tower, "llava-hf", tmp_path, "cuda", torch.bfloat16, backend)
    exact = torch.cat(pair.their_logits())
    chunks = [chunk] * len(pair.prompts)
    hidden = forward_in_chunks(pair.ours, pair.our_embeds(), chunks, block_size=256, granule=16)
    ours = torch.cat([pair.ours.compute_logits(rows) for rows in hidden])
    pair.theirs.to(torch.bfloat16)
    theirs = torch.cat(pair.their_logits()).float()
    assert (ours - exact).norm() <= 2 * (theirs - exact).norm()


def test_the_sample_model_is_as_accurate_as_on_the_cpu(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "samples" / "make_samples.py")]
    subprocess.run([*command, "--rows", "2000", "--seed", "99", "--out", str(tmp_path)], check=True)
    output, summary = tmp_path / "answers.parquet", tmp_path / "summary.json"
    command = [sys.executable, "-m", "vlmbatch", "run", str(tmp_path / "manifest.jsonl")]
    command += ["-m", str(ROOT / "samples" / "tiny-llava"), "-o", str(output), "-q"]
    command += ["--device", "cuda", "--attention-backend", "flash-attn", "--dtype", "bfloat16"]
    subprocess.run([*command, "--summary-json", str(summary)], check=True)
    table = pq.read_table(output)
    pairs = zip(table["text"].to_pylist(), table["answer"].to_pylist(), strict=True)
    right = sum(a == b for a, b in pairs)
    figures = json.loads(summary.read_text())
    print(figures)
    assert right / 2000 >= 0.985
    start = figures["start"]
    assert [*start["engine"]] == ["imports", "device", "weights", "kv_measuring", "kv_cache"]
    assert start["graphs"]["captured"] > 0
    assert start["kernels"]["compiled"] + start["kernels"]["loaded"] > 5


def test_torch_takes_the_context_that_the_driver_has_made() -> None:
    code = """
import ctypes, sys
from vlmbatch.session.gpu_context import make_primary_context
driver = ctypes.CDLL("libcuda.so.1")
make_primary_context(driver)
flags, active = ctypes.c_uint(), ctypes.c_int()
assert driver.cuDevicePrimaryCtxGetState(0, ctypes.byref(flags), ctypes.byref(active)) == 0
assert active.value == 1 and "torch" not in sys.modules
current, kept = ctypes.c_void_p(), ctypes.c_void_p()
assert driver.cuDevicePrimaryCtxRetain(ctypes.byref(kept), 0) == 0
import torch
assert torch.ones(2, device="cuda").sum().item() == 2
assert driver.cuCtxGetCurrent(ctypes.byref(current)) == 0
assert current.value == kept.value
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_answer_waits_for_the_compiler_of_torch() -> None:
    """Its import takes seconds; operators written in Python import it when first called."""
    program = f"""
import sys
from vlmbatch import LLM
if __name__ == "__main__":
    llm = LLM("{ROOT / "samples/tiny-llava"}", device="cuda", dtype="bfloat16", gpus="1")
    llm.generate("USER: Hello! ASSISTANT:")
    print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["False"], done.stderr
