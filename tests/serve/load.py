"""Many clients at once on the sample model, beside ``vlmbatch run`` on the same requests.

    PYTHONPATH=tests/support python tests/serve/load.py [--clients 64] [--seconds 60]
        [--max-tokens 64] [--least-share 0.9]

The run reads the bodies as a batch, with as many rows under way as there are clients; as a stream,
so that it does not put rows with one image together, which a server cannot. HTTP, and handing
requests from thread to thread, is the server's alone: a fixed cost of a request, most of all with
the short answers of ``--max-tokens 0``.

Exits 1 when a request failed, an answer differs from that of the run, the server answers less than
its share of the run's rows a second, or something is not given back at the end: blocks of the KV
pool, memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from command_line import environment
from server_process import MODEL, ROOT, answered_rows, serving, user_message

# Pages of the KV pool are resident once they are touched: a small one is so after the warm-up.
ENGINE = ("--kv-cache-tokens", "16384")
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

    @property
    def rows_per_second(self) -> float:
        return self.num_answers / self.seconds


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
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.partition(b":")[2])
        for line in head.lower().splitlines()
        if line.startswith(b"content-length")
    )
    return int(head.split(b" ", 2)[1]), json.loads(await reader.readexactly(length))


def run_batch(bodies: list[bytes], repeat: int, clients: int) -> tuple[float, list[str]]:
    """``vlmbatch run`` on the bodies ``repeat`` times over: rows a second, and the answers."""
    with tempfile.TemporaryDirectory() as name:
        requests, output, summary = (
            Path(name) / file for file in ("requests.jsonl", "results.jsonl", "summary.json")
        )
        with requests.open("wb") as file:
            for index, body in enumerate(bodies * repeat):
                head = b'{"custom_id":"%d","method":"POST","url":"/v1/chat/completions","body":'
                file.write(head % index + body + b"}\n")
        options = ["-q", "--format", "openai", "-m", MODEL, *ENGINE]
        options += ["--max-num-seqs", str(clients), "--summary-json", str(summary)]
        command = [sys.executable, "-m", "vlmbatch", "run", "-", *options]
        with requests.open("rb") as source, output.open("wb") as target:
            subprocess.run(
                command, cwd=ROOT, env=environment(), stdin=source, stdout=target, check=True
            )
        figures = json.loads(summary.read_text())
        with output.open() as lines:
            results = [json.loads(next(lines)) for _ in bodies]
    choices = [result["response"]["body"]["choices"][0] for result in results]
    return figures["rows_per_second"], [choice["message"]["content"] for choice in choices]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--max-tokens", type=int, default=64, help="0: to each answer's end")
    parser.add_argument("--least-share", type=float, default=0.9, help="of the run's rows/s")
    arguments = parser.parse_args()
    clients, seconds = arguments.clients, arguments.seconds
    bodies = bodies_of(answered_rows(), arguments.max_tokens)
    with serving(*ENGINE) as server:
        warm_up = asyncio.run(drive(server.url, bodies, clients, min(10, seconds)))
        repeat = math.ceil(warm_up.rows_per_second * min(15, seconds) / len(bodies))
        before, texts = run_batch(bodies, repeat, clients)
        memory_before = server.metric("resident_memory_bytes", prefix="process")
        cpu_before = server.metric("cpu_seconds_total", prefix="process")
        load = asyncio.run(drive(server.url, bodies, clients, seconds))
        cpu = server.metric("cpu_seconds_total", prefix="process") - cpu_before
        grown = server.metric("resident_memory_bytes", prefix="process") - memory_before
        used = server.metric("kv_cache_used_tokens")
        after, _ = run_batch(bodies, repeat, clients)
    batched = (before + after) / 2  # other work on the machine comes and goes
    share = load.rows_per_second / batched
    differing = {row: found for row, found in load.answers.items() if found != {texts[row]}}
    print(f"clients   {clients} for {load.seconds:.1f} s")
    print(f"server    {load.rows_per_second:.1f} rows/s, ", end="")
    print(f"{load.num_tokens / load.seconds:.0f} tokens/s, {cpu / load.seconds:.2f} cores")
    print(f"run       {batched:.1f} rows/s: {before:.1f} before, {after:.1f} after, ", end="")
    print(f"on {repeat * len(bodies)} rows")
    print(f"server's  {share:.1%} of the run's rows/s")
    print(f"failures  {sum(load.failures.values())} {dict(load.failures.most_common(3)) or ''}")
    print(f"answers   {len(differing)} of {len(load.answers)} rows differ from the run's")
    print(f"left      {used:.0f} tokens in the KV pool, {grown / 2**20:+.1f} MiB of memory")
    failed = load.failures or differing or used or grown > MEMORY_SLACK
    return int(bool(failed) or share < arguments.least_share)


if __name__ == "__main__":
    sys.exit(main())
