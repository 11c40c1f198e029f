"""Every option of `capture` and `score`, declared once.

The command line, the YAML config file and the library calls are all made from these classes, so a name, a default, a range
and a help text cannot differ between them.
"""

import dataclasses
import json
import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .errors import InputError

RECORD_KEY = "record"  # of config.yaml; what it says about the past is no option
SAMPLE_DATA = "samples"
DEFAULT_MODEL = "smollm2-135m"
DEFAULT_WEIGHTS = {"out": 1.0, "ent": 0.5, "task": 1.0}  # the seed's ranking

_JSON_OPTIONS = ("model_kwargs",)
_MAY_BE_EMPTY = ("keep",)  # lists of names
_OWN_ARGUMENTS = {  # of from_pretrained, that are not for --model-kwargs
    "dtype": "given by --dtype",
    "torch_dtype": "given by --dtype",
    "device_map": "given by --device-map",
    "trust_remote_code": "given by --trust-remote-code",
    "revision": "given by --revision",
    "adapter_kwargs": "given by --adapter",
    "attn_implementation": "chosen by headscore",
    "output_loading_info": "chosen by headscore",
}

QueryMode = Literal["last_token", "all_tokens"]
NormMode = Literal["zscore", "percentile", "ratio", "none"]
HeadOutput = Literal["z", "result"]
Fusion = Literal["rank", "rrf", "sum"]
Within = Literal["layer", "model"]
Unit = Literal["head", "kv_head"]

_ASSIGNMENT = re.compile(r"\s*([A-Za-z_]\w*)\s*(?:=(?!=)\s*(.*\S)\s*)?", re.DOTALL)  # NAME=VALUE, or NAME alone


def _option(
    default: Any, help: str, *, aliases: tuple[str, ...] = (), least: float | None = None, most: float | None = None
) -> Any:
    """A dataclass field with what the command line needs to know: help text, older names, and the allowed range."""
    return dataclasses.field(default=default, metadata={"help": help, "aliases": aliases, "least": least, "most": most})


def option_flag(name: str) -> str:
    """The command-line spelling of an option: `max_samples` -> `--max-samples`."""
    return "--" + name.replace("_", "-")


class _Checked:
    """Checks every field of a settings class against its type and range when it is made.

    Raises InputError naming the option, the value and what is allowed.
    """

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = _coerced(field.name, getattr(self, field.name), hints[field.name])
            _check_range(field.name, value, field.metadata)
            object.__setattr__(self, field.name, value)


def checked_option(settings: type, name: str, value: Any) -> Any:
    """`value` as the type that a settings class declares for `name`; InputError, naming the option, where it does not fit."""
    return _coerced(name, value, get_type_hints(settings)[name])


def _coerced(name: str, value: Any, hint: Any) -> Any:
    """`value` as its declared type; only lossless changes (int to float, str to Path, list to tuple) are made."""
    flag = option_flag(name)
    kinds = get_args(hint) if get_origin(hint) not in (Literal, tuple, Mapping) else (hint,)
    kinds = kinds or (hint,)
    if value is None and type(None) in kinds:
        return None
    kind = next(k for k in kinds if k is not type(None))
    if hasattr(value, "item"):  # a NumPy number
        value = value.item()
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise InputError(f"{flag}: {value!r} is not one of {', '.join(map(str, get_args(kind)))}")
        return value
    if get_origin(kind) is Mapping:
        return _assignments(flag, value, number=get_args(kind)[1] is float)
    if get_origin(kind) is tuple:
        values = (value,) if isinstance(value, str) else value
        empty = isinstance(values, list | tuple) and not values and name not in _MAY_BE_EMPTY
        if empty or not isinstance(values, list | tuple) or not all(isinstance(v, str) and v for v in values):
            raise InputError(f"{flag}: expected one or more names, got {value!r}")
        return tuple(values)
    if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
        return float(value)
    if name in _JSON_OPTIONS and isinstance(value, dict):  # of a configuration file, or a library call
        return _as_json(name, value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is str and isinstance(value, Path):
        return str(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)) or value == "":
        raise InputError(f"{flag}: expected {kind.__name__}, got {value!r:.80}")
    return value


def _assignments(flag: str, value: Any, number: bool) -> dict[str, Any]:
    """A mapping, or texts NAME=VALUE, as a dict; a NAME alone has the value None, and numbers must be finite."""
    pairs: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
        pairs = list(value.items())
    else:
        texts = (value,) if isinstance(value, str) else value
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            raise InputError(f"{flag}: expected NAME=VALUE, got {value!r:.80}")
        for text in texts:
            found = _ASSIGNMENT.fullmatch(text)
            if not found or (number and found[2] is None):
                raise InputError(f"{flag}: expected NAME=VALUE, got {text!r:.80}")
            pairs.append((found[1], found[2]))
    made: dict[str, Any] = {}
    for name, given in pairs:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise InputError(f"{flag}: {name!r:.80} is not a name; use letters, digits and _")
        if name in made:
            raise InputError(f"{flag}: '{name}' stands twice")
        made[name] = _number(flag, name, given) if number else given
    return made


def _number(flag: str, name: str, given: Any) -> float:
    try:
        value = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{flag} {name}: {given!r:.80} is not a finite number")
    return value


def _as_json(name: str, value: dict[str, Any]) -> str:
    try:
        return json.dumps(value)
    except TypeError as error:
        raise InputError(f"{option_flag(name)}: holds what JSON cannot: {error}") from error


def _check_range(name: str, value: Any, metadata: Any) -> None:
    least, most = metadata.get("least"), metadata.get("most")
    if value is None or (least is None and most is None):
        return
    if not math.isfinite(value) or (least is not None and value < least) or (most is not None and value > most):
        wanted = f"between {least} and {most}" if most is not None else f"a number of at least {least}"
        raise InputError(f"{option_flag(name)}: {value} is not {wanted}")


@dataclass(frozen=True, kw_only=True)
class CaptureSettings(_Checked):
    """How a cache is captured: the options of `headscore capture`, with their defaults."""

    model: str = _option(
        DEFAULT_MODEL,
        "Hub id, local folder or .gguf file; 'smollm2-135m' is the default model.",
        aliases=("--model-path",),
    )
    revision: str | None = _option(None, "Branch, tag or commit of a --model of the hub; if not given, its main branch.")
    adapter: str | None = _option(None, "PEFT adapter to merge into the model: hub id or local folder.")
    data: str = _option(
        SAMPLE_DATA, "JSON, JSONL, Parquet or CSV file; 'samples' is the shipped file.", aliases=("--data-path",)
    )
    template: str | None = _option(
        None, "arc, alpaca, plain, or a text file with {column} placeholders; if not given, what the rows' style says."
    )
    chat: bool = _option(False, "Give each prompt as a user's message, in the chat template of the model's tokenizer.")
    system: str | None = _option(None, "System prompt, with --chat.")
    generation_prompt: bool = _option(True, "With --chat, end where the assistant's answer begins.")
    trailing_special: bool = _option(
        False, "Keep special tokens that the tokenizer adds at a prompt's end, such as EOS; the last token is then one of them."
    )
    max_samples: int = _option(1024, "Rows to draw at random, without replacement; the whole file if it has fewer.", least=1)
    max_length: int = _option(512, "Longest prompt in tokens; longer ones are skipped and listed.", least=1)
    max_skipped: float = _option(0.01, "Largest share of skipped rows before the capture stops.", least=0.0, most=1.0)
    seed: int = _option(42, "Seed of the row sample.", least=0, most=2**32 - 1)
    queries: QueryMode = _option(
        "last_token", "Query positions whose attention is kept; all_tokens adds the mean over all of them."
    )
    device: str = _option("auto", "auto, cpu, cuda or cuda:N; auto takes the GPU where there is one.")
    dtype: Literal["auto", "fp32", "fp16", "bf16"] = _option(
        "auto", "Precision of the model; auto is bf16 or fp16 on a GPU, fp32 on the CPU."
    )
    device_map: Literal["auto"] | None = _option(
        None, "auto spreads a model that is too large for one GPU over all that this process sees."
    )
    on_nan: Literal["stop", "skip"] = _option(
        "stop", "What a sample with NaN or infinite values does: stop the capture, or be skipped and listed."
    )
    batch_tokens: int | None = _option(
        None,
        "Tokens in a batch, padding included; if not given 768 on the CPU, on a GPU what fits into its free memory.",
        least=1,
    )
    batch_size: int | None = _option(None, "Most samples in a batch.", least=1)
    share_prefixes: bool = _option(True, "Run what prompts have in common at their start once; off, each prompt is run whole.")
    spot_checks: bool = _option(
        True, "Run some samples of every shard again, alone, and stop where what is stored of them differs."
    )
    shard_size: int = _option(256, "Samples in one shard file.", least=1)
    keep: tuple[str, ...] = _option(
        (), "Column of the data file, or path into one, whose value is kept of each sample; repeat for several."
    )
    compression: Literal["none", "gzip"] = _option("none", "gzip makes shards about a fifth smaller and slower.")
    trust_remote_code: bool = _option(False, "Run code that comes with the model; only for sources you trust.")
    model_kwargs: str | None = _option(
        None, "JSON object of further arguments of from_pretrained, such as a quantization_config."
    )

    def __post_init__(self) -> None:
        if isinstance(self.template, Path):  # is a file, also where it is called like a built-in template
            object.__setattr__(self, "template", os.path.join(os.curdir, self.template))  # noqa: PTH118 - Path drops "./"
        super().__post_init__()
        if self.system is not None and not self.chat:
            raise InputError("--system: is for chat models; give --chat too")
        if self.system is not None and any("\ud800" <= c <= "\udfff" for c in self.system):
            raise InputError("--system: is not text: it holds half a surrogate pair")
        if not self.generation_prompt and not self.chat:
            raise InputError("--no-generation-prompt: is for chat models; give --chat too")
        if self.trailing_special and self.chat:
            raise InputError("--trailing-special: with --chat the chat template says how a prompt ends; leave one of them out")
        if taken := sorted(self.model_arguments().keys() & _OWN_ARGUMENTS.keys()):
            raise InputError(f"--model-kwargs: {taken[0]} is {_OWN_ARGUMENTS[taken[0]]}")

    def model_arguments(self) -> dict[str, Any]:
        """`--model-kwargs` as a dict; InputError where it is no JSON object."""
        try:
            arguments = json.loads(self.model_kwargs or "{}")
        except ValueError as error:
            raise InputError(f"--model-kwargs: not JSON: {error}") from error
        if not isinstance(arguments, dict):
            raise InputError(f"--model-kwargs: expected a JSON object, got {type(arguments).__name__}")
        return arguments


@dataclass(frozen=True, kw_only=True)
class ScoreSettings(_Checked):
    """How a cache is scored: the options of `headscore score`, with their defaults."""

    score_query_mode: QueryMode = _option(
        "last_token", "Score the last token's attention, or the mean over all query positions."
    )
    head_output: HeadOutput = _option("z", "Strength of a head: norm of z, or of its result W_O z.")
    task_span: tuple[str, ...] = _option(("question",), "Span that counts as the task's tokens; repeat for several.")
    measure: Mapping[str, Any] = _option(
        (), "NAME='SQL over the token table': one more sum over each pattern row, such as 'recent = position >= tokens - 10'."
    )
    signal: Mapping[str, Any] = _option((), "NAME='SQL over the measures': one more signal; repeat for several.")
    signals: Path | None = _option(None, "Python file whose functions are further signals; it is run.")
    weight: Mapping[str, float] = _option(
        (), "NAME=NUMBER: weight of a signal in the combined score, beside those of out, ent and task; may be negative."
    )
    lambda_ent: float = _option(DEFAULT_WEIGHTS["ent"], "Weight of ent; the same as --weight ent=NUMBER.")
    lambda_task: float = _option(DEFAULT_WEIGHTS["task"], "Weight of task; the same as --weight task=NUMBER.")
    fusion: Fusion = _option(
        "rank", "Combined score: the weighted sum of ranks, of reciprocal ranks (rrf), or of normalised values (sum)."
    )
    norm_mode: NormMode = _option(
        "zscore", "How values are normalised; with --fusion rank or rrf this only breaks ties between heads."
    )
    within: Within = _option("layer", "Rank and normalise heads among those of their layer, or of the whole model.")
    by: Unit = _option("head", "Rank query heads, or the groups of them that share a key-value head.")
    top_k: int | None = _option(None, "Heads in topk_global.json; 20, or all if there are fewer.", least=1)
    top_k_per_layer: int | None = _option(
        None, "Heads per layer in topk_per_layer.json; 3, or all if there are fewer.", least=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lambda_ent", "lambda_task"):
            if not math.isfinite(getattr(self, name)):
                raise InputError(f"{option_flag(name)}: {getattr(self, name)} is not a finite number")
        self._fold_weights()
        if not any(self.weights.values()):
            raise InputError("--weight: every weight is 0, so there is nothing to rank by")

    @property
    def weights(self) -> dict[str, float]:
        """The weight of every signal in the combined score by its name: first out, ent and task, then those given."""
        seed = {"out": self.weight.get("out", DEFAULT_WEIGHTS["out"]), "ent": self.lambda_ent, "task": self.lambda_task}
        return {**seed, **self.weight}

    def _fold_weights(self) -> None:
        """Give `--weight ent` and `task` their older names, so that a weight stands in one place only."""
        weight = dict(self.weight)
        for name in ("ent", "task"):
            if name not in weight:
                continue
            given, older = weight.pop(name), f"lambda_{name}"
            if getattr(self, older) not in (given, DEFAULT_WEIGHTS[name]):
                raise InputError(f"--weight {name}={given:g}: {option_flag(older)} says {getattr(self, older):g}; give one")
            object.__setattr__(self, older, given)
        object.__setattr__(self, "weight", weight)


@dataclass(frozen=True, kw_only=True)
class WorkSettings(_Checked):
    """How the work of `headscore score` is spread; the result is the same to the last bit."""

    workers: int = _option(1, "Processes of this machine that read the shards.", least=1, most=1024)
    dask: str | None = _option(None, "Address of a Dask scheduler whose workers read the shards, such as tcp://host:8786.")
    fresh: bool = _option(False, "Read every shard again; neither use nor keep what derived/ holds of earlier runs.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dask and self.workers > 1:
            raise InputError("--workers: is for processes of this machine; leave it out with --dask")


@dataclass(frozen=True, kw_only=True)
class RunSettings(ScoreSettings, CaptureSettings):
    """The options of `headscore run`: those of `capture` and `score` together."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.score_query_mode == "all_tokens":  # such scores need such a cache
            object.__setattr__(self, "queries", "all_tokens")


def pick(settings: type, options: dict[str, Any]) -> dict[str, Any]:
    """Those of `options` that are fields of a settings class."""
    return {field.name: options[field.name] for field in dataclasses.fields(settings) if field.name in options}
