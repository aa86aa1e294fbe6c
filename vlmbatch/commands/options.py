"""The options of the commands, as Typer reads them from signatures.

Every option takes a metavar, and a flag an empty one, so that the help fits 80 columns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from vlmbatch.commands.values import parse_duration, parse_share, parse_size
from vlmbatch.config import AttentionBackendName, Device, DType, ImageInputType, ManifestFormat
from vlmbatch.log import LogFormat as LogFormatName
from vlmbatch.settings import load_settings
from vlmbatch.shipped import find_chat_template, find_config

_option = partial(typer.Option, show_envvar=False)
_input = partial(_option, rich_help_panel="Input and output")
_resume = partial(_option, rich_help_panel="Stopping and going on")
_model = partial(_option, rich_help_panel="Model")
_image = partial(_option, rich_help_panel="Images")
_prompt = partial(_option, rich_help_panel="Prompt")
_sampling = partial(_option, rich_help_panel="Sampling (a row's own columns win)")
_engine = partial(_option, rich_help_panel="Engine")
_report = partial(_option, rich_help_panel="Reporting")


def _apply_config_file(ctx: typer.Context, path: Path | None) -> Path | None:
    if path is not None and not ctx.resilient_parsing:
        ctx.default_map = load_settings(find_config(path))
    return path


def _named_template(path: Path | None) -> Path | None:
    return None if path is None else find_chat_template(path)


def _at_least(minimum: int) -> Callable[[int | None], int | None]:
    def check(value: int | None) -> int | None:
        if value is not None and value < minimum:
            raise typer.BadParameter(f"must be at least {minimum}, got {value}")
        return value

    return check


def _checked(parse: Callable[[str | None], object]) -> Callable[[str | None], str | None]:
    def check(text: str | None) -> str | None:
        parse(text)
        return text

    return check


Manifest = Annotated[
    str,
    typer.Argument(
        metavar="MANIFEST",
        help=".jsonl or .ndjson (also .gz, .zst), .parquet, a folder of either, or - for JSONL on "
        "standard input.",
    ),
]
Output = Annotated[
    str | None,
    _input(
        "--output",
        "-o",
        metavar="FILE",
        help="A .parquet file, a folder of them (with --shard-rows), or - for JSONL on standard "
        "output (default when MANIFEST is -). For OpenAI requests also a .jsonl file.",
    ),
]
FeatureFolder = Annotated[
    str | None,
    _input("--output", "-o", metavar="FOLDER", help="Folder for the features and their manifest."),
]
ShardRows = Annotated[
    int | None,
    _input(metavar="N", callback=_at_least(1), help="Write a folder of files with N rows each."),
]
Overwrite = Annotated[
    bool,
    _resume(
        "--overwrite/--resume",
        metavar="",
        show_default=False,
        help="Start anew and replace the output, or go on where an earlier run ended (default).",
    ),
]
RetryFailed = Annotated[
    bool, _resume("--retry-failed", metavar="", help="Answer an earlier run's error rows again.")
]
Incremental = Annotated[
    bool,
    _resume(
        "--incremental",
        metavar="",
        help="When the manifest has changed, keep the answers of unchanged rows.",
    ),
]
Grace = Annotated[
    str,
    _resume(
        metavar="TIME",
        callback=_checked(parse_duration),
        help="Time for rows under way to finish when the run is stopped.",
    ),
]
Deadline = Annotated[
    str | None,
    _resume(
        metavar="TIME",
        callback=_checked(parse_duration),
        help="Stop after this time, such as 45m or 2h, as on SIGTERM.",
    ),
]
MaxErrorRate = Annotated[
    str | None,
    _resume(
        metavar="SHARE",
        callback=_checked(parse_share),
        help="Stop when more than this share of at least 200 rows fail, such as 5%.",
    ),
]
Format = Annotated[
    ManifestFormat,
    _input(
        "--format",
        metavar="NAME",
        help="manifest: rows of your own; openai: requests of an OpenAI batch file; auto: by the "
        "first line.",
    ),
]
Limit = Annotated[
    int | None, _input(metavar="N", callback=_at_least(0), help="Read the first N rows only.")
]
PromptColumn = Annotated[str, _input(metavar="NAME", help="Column of the prompts.")]
ImageColumn = Annotated[str, _input(metavar="NAME", help="Column of the images.")]
IdColumn = Annotated[str, _input(metavar="NAME", help="Column of the row ids.")]
ColumnPrefix = Annotated[
    str,
    _input(
        metavar="TEXT",
        show_default=False,
        help="Put this before the names of the output's own columns, where the manifest has some "
        "of the same name.",
    ),
]
KeepInputs = Annotated[
    bool,
    _input(
        "--keep-inputs",
        metavar="",
        help="Write prompts and images beside the answers, as the manifest has them.",
    ),
]
ConfigFile = Annotated[
    Path | None,
    _input(
        "--config",
        metavar="FILE",
        is_eager=True,
        callback=_apply_config_file,
        help="TOML file of options, such as max_tokens = 64, or the name of one that comes with "
        "vlmbatch, such as llava-1.5-7b.",
    ),
]
Model = Annotated[
    str | None,
    _model(
        "--model",
        "-m",
        metavar="NAME",
        help="Checkpoint folder, or Hub id such as llava-hf/llava-1.5-7b-hf.",
    ),
]
Revision = Annotated[str | None, _model(metavar="NAME", help="Branch, tag or commit on the Hub.")]
TokenizerOption = Annotated[
    str | None,
    _model("--tokenizer", metavar="NAME", help="Folder or Hub id of another tokenizer."),
]
DTypeOption = Annotated[
    DType, _model("--dtype", metavar="NAME", help="auto, float32, bfloat16 or float16.")
]
DeviceOption = Annotated[Device, _model("--device", metavar="NAME", help="auto, cuda or cpu.")]
AttentionBackend = Annotated[
    AttentionBackendName, _model(metavar="NAME", help="auto, flash-attn, triton or torch.")
]
ImageInput = Annotated[
    ImageInputType,
    _image(
        "--image-input-type",
        metavar="NAME",
        help="pixel_values for image files, or image_features for .safetensors or .npy files of "
        "the vision tower's output.",
    ),
]
ImageTokenId = Annotated[
    int | None,
    _image(metavar="ID", help="Token id of <image>. Like the next two, the model's when absent."),
]
ImageInputShape = Annotated[
    str | None, _image(metavar="SHAPE", help="Input of the vision tower, such as 1,3,336,336.")
]
ImageFeatureSize = Annotated[
    int | None, _image(metavar="N", help="<image> tokens that one image takes.")
]
StrictImageTokens = Annotated[
    bool,
    _image(
        "--strict-image-tokens",
        metavar="",
        help="Refuse a single <image> that stands for all of an image's tokens.",
    ),
]
ImageProcessorOption = Annotated[
    str | None,
    _image(
        "--image-processor",
        metavar="NAME",
        help="Folder or Hub id of an image processor to use in place of the model's.",
    ),
]
ImageProcessorRevision = Annotated[
    str | None, _image(metavar="NAME", help="Its branch, tag or commit on the Hub.")
]
DisableImageProcessor = Annotated[
    bool,
    _image(
        "--disable-image-processor",
        metavar="",
        help="Use no image processor: only with image_features, which need none.",
    ),
]
ImageRoot = Annotated[
    Path | None, _image(metavar="FOLDER", help="Refuse image paths that lead out of this folder.")
]
AllowDomain = Annotated[
    list[str] | None,
    _image(
        metavar="HOST",
        help="Fetch images of OpenAI requests from this host, such as images.example.org; "
        "*.example.org: from all below it. Repeatable.",
    ),
]
MaxImagePixels = Annotated[
    int,
    _image(metavar="N", callback=_at_least(1), help="Refuse images of more pixels, undecoded."),
]
ImageWorkers = Annotated[
    int | None,
    _image(
        metavar="N",
        callback=_at_least(0),
        help="Processes that decode images; absent: one a core, less one; 0: none, "
        "and no protection from images that crash or hang their decoder.",
    ),
]
ImageTimeout = Annotated[
    float, _image(metavar="SECONDS", help="Give up an image that takes longer to decode.")
]
DecodeImages = Annotated[
    bool,
    _image(
        "--decode-images",
        metavar="",
        help="Read each image whole, not only its header: slower, finds truncated files.",
    ),
]
Chat = Annotated[
    bool,
    _prompt("--chat", metavar="", help="Apply the model's chat template, image first."),
]
ChatTemplate = Annotated[
    Path | None,
    _prompt(
        metavar="FILE",
        callback=_named_template,
        help="Jinja template in place of the model's, or the name of one that comes with vlmbatch: "
        "llava-1.5.",
    ),
]
PromptTemplate = Annotated[
    str | None, _prompt(metavar="TEXT", help="Text around each prompt, which replaces {prompt}.")
]
SystemPrompt = Annotated[str | None, _prompt(metavar="TEXT", help="System message of every chat.")]
MaxTokens = Annotated[int, _sampling(metavar="N", help="Generate at most N tokens.")]
Temperature = Annotated[float, _sampling(metavar="T", help="0 is greedy.")]
TopP = Annotated[
    float,
    _sampling(
        "--top-p", metavar="P", help="Sample from the likeliest tokens of total probability P."
    ),
]
TopK = Annotated[
    int, _sampling("--top-k", metavar="K", help="Sample from the K likeliest tokens; 0 is all.")
]
Stop = Annotated[
    list[str] | None, _sampling(metavar="TEXT", help="End before this text. Repeatable.")
]
StopTokenId = Annotated[
    list[int] | None, _sampling(metavar="ID", help="End at this token. Repeatable.")
]
Seed = Annotated[int, _sampling(metavar="N", help="Seed of each row's random choices.")]
IgnoreEos = Annotated[
    bool,
    _sampling("--ignore-eos", metavar="", help="Go on past the end-of-sequence token."),
]
MaxNumSeqs = Annotated[
    int | None, _engine(metavar="N", help="Rows in one step; absent: what suits the device.")
]
MaxBatchedTokens = Annotated[
    int | None, _engine(metavar="N", help="Tokens in one step; absent: what suits the device.")
]
KvCacheTokens = Annotated[
    int | None,
    _engine(
        metavar="N", callback=_at_least(1), help="Size of the KV cache; absent: what memory allows."
    ),
]
MaxModelLen = Annotated[
    int | None,
    _engine(metavar="N", callback=_at_least(1), help="Context length; absent: the model's own."),
]
NoPrefixCaching = Annotated[
    bool,
    _engine(
        "--no-prefix-caching", metavar="", help="Compute anew a beginning that rows have in common."
    ),
]
HostMemory = Annotated[
    str | None,
    _engine(
        metavar="SIZE",
        callback=_checked(parse_size),
        help="Host memory for what waits, such as 4GiB; absent: an eighth, at most 1GiB.",
    ),
]
Errors = Annotated[
    str | None,
    _report("--errors", metavar="FILE", help="Write each error as a JSON line; - is stdout."),
]
Quiet = Annotated[bool, _report("--quiet", "-q", metavar="", help="Print nothing but errors.")]
Verbose = Annotated[
    int,
    _report(
        "--verbose",
        "-v",
        count=True,
        metavar="",
        show_default=False,
        help="Print more; -vv: also of libraries, and all tracebacks.",
    ),
]
NoProgress = Annotated[
    bool, _report("--no-progress", metavar="", help="No live display, no progress lines.")
]
LogFormat = Annotated[
    LogFormatName, _report(metavar="NAME", help="Format of standard error: text or json.")
]
SummaryJson = Annotated[
    str | None,
    _report(metavar="FILE", help="Write the final figures as JSON; - is standard output."),
]
ExitZero = Annotated[
    bool, _report("--exit-zero", metavar="", help="Exit 0 even when some rows are errors.")
]
