"""Many clients at once on the sample model, beside ``vlmbatch run`` on the same rows.

    python tests/serve/load.py [--clients 64] [--seconds 60] [--max-tokens 64]

Exits 1 when a request failed, an answer differs from that of the run, or something is not given
back at the end: blocks of the KV pool, memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from command_line import environment
from server_process import MODEL, ROOT, answered_rows, serving, user_message

# What grows to a bound and stays there is kept small, to be there after the warm-up: pages of the
# pool are resident once they are touched, and torch and oneDNN keep code for shapes they have met.
CACHES = {"LRU_CACHE_CAPACITY": "16", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16"}
KV_TOKENS = 16_384
# The server may keep so much more memory than after a warm-up: caches of allocators.
MEMORY_SLACK = 32 * 2**20


@dataclass
class Load:
    """What the clients saw."""

    seconds: float = 0.0
    answers: dict[int, set[str]] = field(default_factory=dict)  # texts, by row
    num_answers: int = 0
    num_tokens: int = 0
    failures: Counter[str] = field(default_factory=Counter)


def bodies_of(rows: list[dict[str, Any]], max_tokens: int) -> list[bytes]:
    """A request for each row; ``max_tokens`` 0: answers end where they end."""
    length = {"max_tokens": max_tokens, "ignore_eos": True} if max_tokens else {}
    return [
        json.dumps(
            {
                "model": MODEL,
                "messages": [user_message(row["question"], row["url"])],
                "temperature": 0,
                **length,
            }
        ).encode()
        for row in rows
    ]


async def drive(url: str, bodies: list[bytes], clients: int, seconds: float) -> Load:
    """Have ``clients`` connections send requests one after another for ``seconds``."""
    load, address = Load(), urlsplit(url)
    started = time.monotonic()

    async def client(first: int) -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        row = first
        while time.monotonic() - started < seconds:
            row = (row + 1) % len(bodies)
            status, answer = await _post(reader, writer, bodies[row])
            if status != 200:
                load.failures[f"{status}: {answer}"] += 1
                continue
            load.num_answers += 1
            load.num_tokens += answer["usage"]["completion_tokens"]
            text = answer["choices"][0]["message"]["content"]
            load.answers.setdefault(row, set()).add(text)
        writer.close()

    await asyncio.gather(*(client(number * 7) for number in range(clients)))
    load.seconds = time.monotonic() - started
    return load


async def _post(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes
) -> tuple[int, Any]:
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body) + body
    )
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.partition(b":")[2])
        for line in head.lower().splitlines()
        if line.startswith(b"content-length")
    )
    return int(head.split(b" ", 2)[1]), json.loads(await reader.readexactly(length))


def run_batch(
    rows: list[dict[str, Any]], repeat: int, max_tokens: int
) -> tuple[float, float, list[str]]:
    """``vlmbatch run`` on the rows ``repeat`` times over: rows a second, cores, and the answers."""
    length = ["--max-tokens", str(max_tokens), "--ignore-eos"] if max_tokens else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest, summary = folder / "rows.jsonl", folder / "summary.json"
        lines = [
            json.dumps({"prompt": row["prompt"], "image": str(ROOT / "samples" / row["image"])})
            for row in rows
        ]
        manifest.write_text("\n".join(lines * repeat))
        command = [sys.executable, "-m", "vlmbatch", "run", str(manifest), "-m", MODEL, "-q"]
        command += [
            "--kv-cache-tokens",
            str(KV_TOKENS),
            "-o",
            str(folder / "out.parquet"),
            "--summary-json",
            str(summary),
            *length,
        ]
        before = os.times()
        subprocess.run(command, cwd=ROOT, env=environment(**CACHES), check=True)
        after = os.times()
        import pyarrow.parquet

        texts = pyarrow.parquet.read_table(folder / "out.parquet")["text"].to_pylist()
        figures = json.loads(summary.read_text())
        cpu = sum(after[2:4]) - sum(before[2:4])
        return figures["rows_per_second"], cpu / figures["seconds"], texts[: len(rows)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--max-tokens", type=int, default=64, help="0: to each answer's end")
    arguments = parser.parse_args()
    rows = answered_rows()
    bodies = bodies_of(rows, arguments.max_tokens)
    with serving("--kv-cache-tokens", str(KV_TOKENS), **CACHES) as server:
        asyncio.run(drive(server.url, bodies, arguments.clients, min(10, arguments.seconds)))
        memory_before = server.metric("resident_memory_bytes", prefix="process")
        cpu_before = server.metric("cpu_seconds_total", prefix="process")
        load = asyncio.run(drive(server.url, bodies, arguments.clients, arguments.seconds))
        cpu = server.metric("cpu_seconds_total", prefix="process") - cpu_before
        grown = server.metric("resident_memory_bytes", prefix="process") - memory_before
        used = server.metric("kv_cache_used_tokens")
    served = load.num_answers / load.seconds
    repeat = max(1, round(served * min(20, arguments.seconds) / len(rows)))
    batched, cores, texts = run_batch(rows, repeat, arguments.max_tokens)
    differing = {row: found for row, found in load.answers.items() if found != {texts[row]}}
    print(f"clients   {arguments.clients} for {load.seconds:.1f} s")
    print(f"server    {served:.1f} rows/s, {load.num_tokens / load.seconds:.0f} tokens/s, ", end="")
    print(f"{cpu / load.seconds:.2f} cores")
    print(f"run       {batched:.1f} rows/s, {cores:.2f} cores, on {repeat * len(rows)} rows")
    print(f"server's  {served / batched:.1%} of the run's rows/s")
    print(f"failures  {sum(load.failures.values())} {dict(load.failures.most_common(3)) or ''}")
    print(f"answers   {len(differing)} of {len(load.answers)} rows differ from the run's")
    print(f"left      {used:.0f} tokens in the KV pool, {grown / 2**20:+.1f} MiB of memory")
    return int(bool(load.failures or differing or used or grown > MEMORY_SLACK))


if __name__ == "__main__":
    sys.exit(main())
