"""Trains the sample model from scratch on drawn scenes and writes its folder.

python samples/train_tiny_llava.py

Minutes on one GPU. On a CPU it runs too, slowly; look with --steps 20 --scenes 500 --batch 16.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from pathlib import Path

import torch
from checkpoint import IMAGE_SIDE, new_model, save_checkpoint
from evaluate import evaluate
from packed_model import Batch, PackedModel
from packing import make_packs
from scenes import HELD_OUT_SEED, TRAINING_SEED
from vocabulary import train_tokenizer

WARMUP_SHARE = 0.03  # of the steps
EMA_DECAY = 0.999
SYSTEM_PROMPT_SHARE = 0.15  # of the steps
CHECK_SEED = HELD_OUT_SEED // 2  # scenes to watch progress on, neither trained on nor held out
CHECK_SCENES = 1000


def _optimizer(model: torch.nn.Module, fused: bool) -> torch.optim.AdamW:
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=fused)


def train(packed: PackedModel, packs: Batch, check: Batch, arguments: argparse.Namespace) -> None:
    """Trains the model in place and leaves the running average of its weights in it."""
    rng = random.Random(arguments.seed)
    parameters = list(packed.model.parameters())
    averaged = [parameter.detach().clone() for parameter in parameters]
    optimizer = _optimizer(packed.model, fused=packed.device.type == "cuda")
    start = time.monotonic()
    for step in range(1, arguments.steps + 1):
        warmup = min(1, step / (WARMUP_SHARE * arguments.steps))
        cosine = (1 + math.cos(math.pi * step / arguments.steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * warmup * (0.01 + 0.99 * cosine)
        bare, *with_system = packed.heads
        head = rng.choice(with_system) if rng.random() < SYSTEM_PROMPT_SHARE else bare
        chosen = torch.randint(len(packs["pixels"]), (arguments.batch,), device=packed.device)
        loss = packed.loss({name: values[chosen] for name, values in packs.items()}, head)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            decay = min(EMA_DECAY, step / (step + 10))
            torch._foreach_lerp_(averaged, parameters, 1 - decay)
        if step % arguments.log_every == 0:
            accuracy = packed.accuracy(check, arguments.batch)
            seconds = time.monotonic() - start
            print(f"step {step} {seconds:.0f} s loss {loss.item():.4f} {accuracy}", flush=True)
    with torch.no_grad():
        for parameter, average in zip(parameters, averaged, strict=True):
            parameter.copy_(average)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "tiny-llava")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=5_000)
    parser.add_argument("--scenes", type=int, default=300_000, help="scenes to train on")
    parser.add_argument("--batch", type=int, default=512, help="scenes in a step")
    parser.add_argument("--learning-rate", type=float, default=1.2e-3)
    parser.add_argument("--held-out", type=int, default=1000, help="scenes to evaluate on")
    parser.add_argument("--log-every", type=int, default=500, help="steps")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="to draw scenes")
    arguments = parser.parse_args()

    start = time.monotonic()
    tokenizer = train_tokenizer()
    packs, check = (
        make_packs(range(first, first + count), tokenizer, IMAGE_SIDE, arguments.workers)
        for first, count in ((TRAINING_SEED, arguments.scenes), (CHECK_SEED, CHECK_SCENES))
    )
    print(f"{len(packs)} scenes in {time.monotonic() - start:.0f} s", flush=True)

    torch.manual_seed(arguments.seed)
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = new_model(tokenizer)
    packed = PackedModel(model, tokenizer, device)
    train(packed, packed.to_device(packs), packed.to_device(check), arguments)
    save_checkpoint(model, tokenizer, arguments.out)

    torch.set_float32_matmul_precision("highest")
    held_out = evaluate(arguments.out, arguments.held_out, device.type)
    wrong = held_out.pop("wrong")
    record = {
        "seed": arguments.seed,
        "steps": arguments.steps,
        "batch": arguments.batch,
        "learning_rate": arguments.learning_rate,
        "training_scenes": arguments.scenes,
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
