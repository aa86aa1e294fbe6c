"""``vlmbatch bench``: how fast this machine is, beside what it could be."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from vlmbatch import log
from vlmbatch.commands import options
from vlmbatch.commands.checks import check_report_file
from vlmbatch.commands.exits import early_exits
from vlmbatch.commands.places import check_places, input_places, report_places
from vlmbatch.config import EngineConfig

if TYPE_CHECKING:
    from rich.console import Console

ENGINE = EngineConfig()
_option = partial(typer.Option, show_envvar=False)
_FILE_WIDTH = 100

RandomWeights = Annotated[
    bool,
    _option(
        "--random-weights",
        metavar="",
        help="Make weights up: --model is then a config.json, a folder that has one, or "
        "llava-1.5-7b.",
        rich_help_panel="Model",
    ),
]
Workloads = Annotated[
    str,
    _option(
        metavar="NAMES",
        help="classify: one short answer an image; caption: one long; vqa: 8 questions an image; "
        "photos: large images.",
    ),
]
Rows = Annotated[
    int | None,
    _option(
        metavar="N",
        min=1,
        help="Rows of each workload; absent: what fills the device, fewer on a CPU.",
    ),
]
Startup = Annotated[
    bool,
    _option(
        "--startup",
        metavar="",
        help="Also time `vlmbatch run` from process start to its first row; random "
        "weights are written to the temporary folder for it.",
    ),
]
Json = Annotated[
    str | None,
    _option("--json", metavar="FILE", help="Write all figures as JSON; - is standard output."),
]


def bench(
    workloads: Workloads = "classify,caption,vqa,photos",
    rows: Rows = None,
    startup: Startup = False,
    json: Json = None,
    config: options.ConfigFile = None,
    model: options.Model = None,
    random_weights: RandomWeights = False,
    dtype: options.DTypeOption = ENGINE.dtype,
    device: options.DeviceOption = ENGINE.device,
    attention_backend: options.AttentionBackend = ENGINE.attention_backend,
    image_workers: options.ImageWorkers = None,
    max_num_seqs: options.MaxNumSeqs = ENGINE.max_num_seqs,
    max_batched_tokens: options.MaxBatchedTokens = ENGINE.max_batched_tokens,
    kv_cache_tokens: options.KvCacheTokens = None,
    max_model_len: options.MaxModelLen = None,
    no_prefix_caching: options.NoPrefixCaching = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Measure workloads of made-up images and prompts, by the same code as `run`.

    Without a model: LLaVA-1.5-7B with random weights on a GPU, the sample model
    on a CPU. Exits 1 when rows failed.
    """
    log.configure(verbose=verbose, quiet=quiet)
    check_report_file("--json", json)
    check_places(
        [*report_places(json=json), *input_places(config=config, folders={"model": model})]
    )
    from vlmbatch.bench.workloads import parse_workloads

    chosen = parse_workloads(workloads)
    from vlmbatch.bench.bench import bench as measure
    from vlmbatch.bench.report import as_json, print_report
    from vlmbatch.bench.setup import BenchConfig
    from vlmbatch.summary import write_json

    bench_config = BenchConfig(
        model=model,
        workloads=chosen,
        random_weights=random_weights,
        rows=rows,
        startup=startup,
        engine=EngineConfig(
            dtype=dtype,
            device=device,
            attention_backend=attention_backend,
            max_num_seqs=max_num_seqs,
            max_batched_tokens=max_batched_tokens,
            kv_cache_tokens=kv_cache_tokens,
            max_model_len=max_model_len,
            enable_prefix_caching=not no_prefix_caching,
        ),
        image_workers=image_workers,
    )
    with early_exits(lambda: "no figures are kept"):
        result = measure(bench_config)
        if json is not None:
            write_json(as_json(result), json)
        if not quiet:
            print_report(result, log.console() if json == "-" else _stdout())
    raise typer.Exit(1 if result.num_errors else 0)


def _stdout() -> Console:
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else _FILE_WIDTH)
