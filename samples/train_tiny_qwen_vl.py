"""Trains the second sample model from scratch on drawn pictures and writes its folder.

python samples/train_tiny_qwen_vl.py

Minutes on one GPU, as many as --minutes says and some for drawing the pictures and for the
evaluation. The first half of the time goes to scenes and to pages of one word, the second to pages
of several words, for the most part. On a CPU it runs too, slowly; look with
--minutes 1 --scenes 400 --words 200 --pages 200 --batch 16.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import random
import time
from pathlib import Path

import torch
from evaluate_qwen_vl import evaluate
from qwen_checkpoint import new_model, save_checkpoint
from qwen_packed_model import Group, Pictures, QwenPackedModel, to_device
from qwen_packing import make_chunks
from qwen_vocabulary import train_tokenizer
from scenes import HELD_OUT_SEED, TRAINING_SEED
from tokenizers import Tokenizer

WARMUP_SHARE = 0.03  # of the time
EMA_DECAY = 0.998
SYSTEM_PROMPT_SHARE = 0.15  # of the steps
PHASES = (  # from a share of the time on: the shares of the steps
    (0.0, {"scenes": 0.46, "pairs": 0.29, "words": 0.25}),
    (0.5, {"scenes": 0.31, "pairs": 0.23, "words": 0.04, "pages": 0.42}),
)
CHECK_SEED = HELD_OUT_SEED // 2  # pictures to watch progress on, neither trained on nor held out
CHECK_PICTURES = 600  # of each group
Data = tuple[Pictures, dict[str, Group]]


def load_data(
    first_seed: int,
    counts: dict[str, int],
    tokenizer: Tokenizer,
    workers: int,
    device: torch.device,
) -> Data:
    seeds = {group: range(first_seed, first_seed + count) for group, count in counts.items()}
    return to_device(make_chunks(seeds, tokenizer, workers), device)


def _optimizer(model: torch.nn.Module, fused: bool) -> torch.optim.AdamW:
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=fused)


def _choose(groups: dict[str, Group], progress: float, batch: int, rng: random.Random) -> Group:
    """Random packs of one group, which is random as well."""
    shares = [shares for start, shares in PHASES if start <= progress][-1]
    (name,) = rng.choices(list(shares), weights=list(shares.values()))
    group = groups[name]
    rows = torch.randint(0, len(group), (batch,), device=group.packs["images"].device)
    return group.take(rows)


def train(
    packed: QwenPackedModel,
    averaged: QwenPackedModel,
    data: Data,
    check: Data,
    tokenizer: Tokenizer,
    arguments: argparse.Namespace,
) -> int:
    """Trains the model, keeps the running average of its weights in ``averaged``: steps done.

    The learning rate follows the share of the time that is over, so that it ends in time.
    """
    pictures, groups = data
    rng = random.Random(arguments.seed)
    parameters, averages = (list(each.model.parameters()) for each in (packed, averaged))
    optimizer = _optimizer(packed.model, fused=packed.device.type == "cuda")
    start = last_log = time.monotonic()
    step, progress = 0, 0.0
    while progress < 1:
        step += 1
        rate = min(1, progress / WARMUP_SHARE) * (1 + math.cos(math.pi * progress)) / 2
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * (0.01 + 0.99 * rate)
        bare, *with_system = packed.heads
        head = rng.choice(with_system) if rng.random() < SYSTEM_PROMPT_SHARE else bare
        chosen = _choose(groups, progress, arguments.batch, rng)
        loss = packed.loss(pictures, chosen, head)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            decay = min(EMA_DECAY, step / (step + 10))
            torch._foreach_lerp_(averages, parameters, 1 - decay)
        if step % 20 == 0:
            loss.item()  # the clock is to tell when steps end, not when they are asked for
        now = time.monotonic()
        progress = min(1.0, (now - start) / (60 * arguments.minutes))
        if now - last_log >= arguments.log_every or step == 100 or progress == 1:
            last_log = now
            accuracy = averaged.accuracy(check[0], check[1].values(), arguments.batch)
            told = f"step {step} {now - start:.0f} s loss {loss.item():.4f}"
            print(told, json.dumps(accuracy), flush=True)
            save_checkpoint(averaged.model, tokenizer, arguments.out)
    return step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "tiny-qwen-vl")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=9.0, help="to train, drawing excluded")
    parser.add_argument("--scenes", type=int, default=240_000, help="scenes to train on")
    parser.add_argument("--words", type=int, default=60_000, help="pages with one word")
    parser.add_argument("--pages", type=int, default=120_000, help="pages with several words")
    parser.add_argument("--batch", type=int, default=512, help="packs in a step")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--held-out", type=int, default=1000, help="questions to evaluate on")
    parser.add_argument("--log-every", type=float, default=20, help="seconds")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="to draw pictures")
    arguments = parser.parse_args()

    start = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = train_tokenizer()
    counts = {group: vars(arguments)[group] for group in ("scenes", "words", "pages")}
    of_check = {group: min(count, CHECK_PICTURES) for group, count in counts.items()}
    data, check = (
        load_data(seed, some, tokenizer, arguments.workers, device)
        for seed, some in ((TRAINING_SEED, counts), (CHECK_SEED, of_check))
    )
    num_pictures = len(data[0].starts)
    print(f"{num_pictures} pictures in {time.monotonic() - start:.0f} s", flush=True)

    torch.manual_seed(arguments.seed)
    torch.set_float32_matmul_precision("high")
    model = new_model(tokenizer)
    packed, averaged = (
        QwenPackedModel(each, tokenizer, device) for each in (model, copy.deepcopy(model))
    )
    steps = train(packed, averaged, data, check, tokenizer, arguments)

    torch.set_float32_matmul_precision("highest")
    held_out = evaluate(arguments.out, arguments.held_out, device.type)
    wrong = held_out.pop("wrong")
    record = {
        "seed": arguments.seed,
        "steps": steps,
        "batch": arguments.batch,
        "learning_rate": arguments.learning_rate,
        "training_pictures": counts,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "wall_seconds": round(time.monotonic() - start),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "held_out": held_out,
    }
    (arguments.out / "TRAINING.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))
    for row in wrong:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
