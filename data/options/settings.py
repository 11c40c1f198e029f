"""Every option of `capture` and `score`, declared once.

The command line, the YAML config file and the library calls are all made from these classes, so a name, a default, a range
and a help text cannot differ between them.
"""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import OptionError, one_line
from ..files.strict_json import parse_strictly
from ..voice import option_flag
from .checked import Checked, option, require_weight

if TYPE_CHECKING:
    from polars import Expr
else:

    class Expr:
        """Stands for polars.Expr where types are read as the program runs: polars takes time to load, and --help needs none."""


RECORD_KEY = "record"  # of config.yaml; what it says about the past is no option
METADATA_FILE = "cache.json"  # by which a folder is known as a cache
SAMPLE_DATA = "samples"
BUILT_IN_TEMPLATES = ("arc", "alpaca", "plain")
DEFAULT_MODEL = "smollm2-135m"
MAX_TOKENS = 1 << 21  # of one sample: models of today take a million, and a reader holds some numbers of each token
DEFAULT_WEIGHTS = {"out": 1.0, "ent": 0.5, "task": 1.0}  # the default ranking

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
How = Literal["zero", "mean"]
AnswerKind = Literal["label", "text"]
ControlKind = Literal["null", "shuffle"]


@dataclass(frozen=True, kw_only=True)
class CaptureSettings(Checked):
    """How a cache is captured: the options of `headscore capture`, with their defaults."""

    model: str = option(
        DEFAULT_MODEL,
        "Hub id, local folder or .gguf file; 'smollm2-135m' is the default model.",
        aliases=("--model-path",),
    )
    revision: str | None = option(None, "Branch, tag or commit of a --model on the hub; if not given, its main branch.")
    adapter: str | None = option(None, "PEFT adapter to merge into the model: hub id or local folder.")
    data: str = option(
        SAMPLE_DATA, "JSON, JSONL, Parquet or CSV file; 'samples' is the shipped file.", aliases=("--data-path",)
    )
    template: str | None = option(
        None, "arc, alpaca, plain, or a text file with {column} placeholders; if not given, that of the rows' style."
    )
    chat: bool = option(False, "Give each prompt as a user's message, in the chat template of the model's tokenizer.")
    system: str | None = option(None, "System prompt, with --chat.")
    generation_prompt: bool = option(True, "With --chat, end where the assistant's answer begins.")
    trailing_special: bool = option(
        False, "Keep special tokens that the tokenizer adds at a prompt's end, such as EOS; the last token is then one of them."
    )
    control: ControlKind | None = option(
        None, "Capture control prompts: null replaces each question by a neutral one, shuffle shuffles its words."
    )
    max_samples: int = option(1024, "Rows to draw at random, without replacement; the whole file if it has fewer.", least=1)
    max_length: int = option(512, "Longest prompt in tokens; longer ones are skipped and listed.", least=1, most=MAX_TOKENS)
    max_skipped: float = option(0.01, "Largest share of skipped rows before the capture stops.", least=0.0, most=1.0)
    seed: int = option(42, "Seed of the row sample.", least=0, most=2**32 - 1)
    queries: QueryMode = option(
        "last_token", "Which query positions' attention is stored; all_tokens adds the mean over all positions."
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N; auto takes the GPU where there is one.")
    dtype: Literal["auto", "fp32", "fp16", "bf16"] = option(
        "auto", "Precision of the model; auto is bf16 or fp16 on a GPU, fp32 on the CPU."
    )
    device_map: Literal["auto"] | None = option(
        None, "auto spreads a model that is too large for one GPU over all GPUs that this process sees."
    )
    on_nan: Literal["stop", "skip"] = option(
        "stop", "What happens at a sample with NaN or infinite values: stop the capture, or skip the sample and list it."
    )
    batch_tokens: int | None = option(
        None,
        "Tokens in a batch, padding included; if not given, 768 on the CPU, and on a GPU what fits into its free memory.",
        least=1,
    )
    batch_size: int | None = option(None, "Maximum number of samples in a batch.", least=1)
    share_prefixes: bool = option(
        True, "Run what prompts have in common at their start only once; without it, each prompt is run whole."
    )
    spot_checks: bool = option(True, "Run some samples of every shard again, alone, and stop if the stored values differ.")
    shard_size: int = option(256, "Drawn rows per shard file, skipped ones included.", least=1)
    keep: tuple[str, ...] = option(
        (), "Column of the data file, or path into one, whose value is stored for each sample; repeat for several."
    )
    trust_remote_code: bool = option(False, "Run code that comes with the model; only for sources you trust.")
    model_kwargs: str | None = option(
        None, "JSON object of further arguments of from_pretrained, such as a quantization_config.", is_json=True
    )

    def __post_init__(self) -> None:
        if isinstance(self.template, Path):  # is a file, also where it is called like a built-in template
            object.__setattr__(self, "template", os.path.join(os.curdir, self.template))  # noqa: PTH118 - Path drops "./"
        super().__post_init__()
        if self.system is not None and not self.chat:
            raise OptionError("--system: is for chat models; give --chat too")
        if not self.generation_prompt and not self.chat:
            raise OptionError("--no-generation-prompt: is for chat models; give --chat too")
        if self.trailing_special and self.chat:
            raise OptionError("--trailing-special: with --chat the chat template says how a prompt ends; leave one of them out")
        if taken := sorted(self.model_arguments().keys() & _OWN_ARGUMENTS.keys()):
            raise OptionError(f"--model-kwargs: {taken[0]} is {_OWN_ARGUMENTS[taken[0]]}")

    def model_arguments(self) -> dict[str, object]:
        """`--model-kwargs` as a dict; InputError where it is not a JSON object."""
        try:
            arguments = parse_strictly(self.model_kwargs or "{}")
        except ValueError as error:
            raise OptionError(f"--model-kwargs: not JSON: {one_line(error)[:200]}") from error
        if not isinstance(arguments, dict):
            raise OptionError(f"--model-kwargs: expected a JSON object, got {type(arguments).__name__}")
        return arguments


@dataclass(frozen=True, kw_only=True)
class ScoreSettings(Checked):
    """How a cache is scored: the options of `headscore score`, with their defaults."""

    score_query_mode: QueryMode = option(
        "last_token", "Score the last token's attention, or the mean over all query positions."
    )
    head_output: HeadOutput = option("z", "Strength of a head: norm of its output z, or of its result W_O z.")
    task_span: tuple[str, ...] = option(("question",), "Span that counts as the task's tokens; repeat for several.")
    measure: Mapping[str, str | Expr] = option(
        (), "NAME='SQL over the token table': one more sum over each pattern row, such as 'recent = position >= tokens - 10'."
    )
    signal: Mapping[str, str | Expr] = option(
        (), "NAME='SQL over the measures': one more signal; it counts for the combined score only with a --weight."
    )
    signals: Path | None = option(None, "Python file whose functions are further signals; it is run.")
    weight: Mapping[str, float] = option(
        (), "NAME=NUMBER: weight of a signal in the combined score, in addition to out, ent and task; may be negative."
    )
    lambda_ent: float = option(DEFAULT_WEIGHTS["ent"], "Weight of ent; the same as --weight ent=NUMBER.")
    lambda_task: float = option(DEFAULT_WEIGHTS["task"], "Weight of task; the same as --weight task=NUMBER.")
    fusion: Fusion = option(
        "rank", "Combined score: the weighted sum of ranks, of reciprocal ranks (rrf), or of normalised values (sum)."
    )
    norm_mode: NormMode = option(
        "zscore", "How values are normalised; with --fusion rank or rrf this only breaks ties between heads."
    )
    within: Within = option(
        "layer", "Rank and normalise heads among those of their layer, or of the whole model; raw values stay as they are."
    )
    by: Unit = option("head", "Rank query heads, or the groups of them that share a key-value head.")
    top_k: int | None = option(None, "Heads in topk_global.json; 20, or all if there are fewer.", least=1)
    top_k_per_layer: int | None = option(None, "Heads per layer in topk_per_layer.json; 3, or all if there are fewer.", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lambda_ent", "lambda_task"):
            require_weight(option_flag(name), getattr(self, name))
        self._fold_weights()
        if not any(self.weights.values()):
            raise OptionError("--weight: every weight is 0, so there is nothing to rank by")

    @property
    def weights(self) -> dict[str, float]:
        """The weight of every signal in the combined score by its name: first out, ent and task, then those given."""
        default = {"out": self.weight.get("out", DEFAULT_WEIGHTS["out"]), "ent": self.lambda_ent, "task": self.lambda_task}
        return {**default, **self.weight}

    def _fold_weights(self) -> None:
        """Give `--weight ent` and `task` their older names, so that a weight stands in one place only."""
        weight = dict(self.weight)
        for name in ("ent", "task"):
            if name not in weight:
                continue
            given, older = weight.pop(name), f"lambda_{name}"
            if getattr(self, older) not in (given, DEFAULT_WEIGHTS[name]):
                raise OptionError(f"--weight {name}={given:g}: {option_flag(older)} says {getattr(self, older):g}; give one")
            object.__setattr__(self, older, given)
        object.__setattr__(self, "weight", weight)


@dataclass(frozen=True, kw_only=True)
class BootstrapSettings(Checked):
    """How a ranking's stability is found: further options of `headscore score`, with their defaults."""

    bootstrap: int | None = option(
        None,
        "How often the samples are drawn anew, to see how stable each head's place is; if not given, not at all.",
        least=100,
        most=1_000_000,
    )
    strata: str | None = option(
        None, "With --bootstrap, a column that capture --keep stored: each of its values keeps its number of samples."
    )
    cluster: str | None = option(
        None, "With --bootstrap, a column that capture --keep stored: samples with the same value are drawn together."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bootstrap is None and (self.strata or self.cluster):
            raise OptionError("--strata and --cluster: belong to the bootstrap; give --bootstrap, too")


@dataclass(frozen=True, kw_only=True)
class WorkSettings(Checked):
    """How the work of `headscore score` is spread; the result is the same to the last bit."""

    workers: int = option(1, "Processes of this machine that read the shards.", least=1, most=1024)
    dask: str | None = option(None, "Address of a Dask scheduler whose workers read the shards, such as tcp://host:8786.")
    fresh: bool = option(False, "Read every shard again; neither use nor store what derived/ holds of earlier runs.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dask and self.workers > 1:
            raise OptionError("--workers: is for processes of this machine; leave it out with --dask")


@dataclass(frozen=True, kw_only=True)
class ValidateSettings(Checked):
    """How a ranking is tested by what the model loses without its heads: the options of `headscore validate`."""

    model: str | None = option(None, "The model; if not given, the one that the cache names.", aliases=("--model-path",))
    revision: str | None = option(None, "Branch, tag or commit of a --model on the hub.")
    adapter: str | None = option(None, "PEFT adapter to merge into --model: hub id or local folder.")
    allow_other_model: bool = option(False, "Validate the ranking on a model other than the one that was captured.")
    device: str = option("auto", "auto, cpu, cuda or cuda:N; auto takes the GPU where there is one.")
    dtype: Literal["auto", "fp32", "fp16", "bf16"] = option(
        "auto", "Precision of the model; auto is bf16 or fp16 on a GPU, fp32 on the CPU."
    )
    device_map: Literal["auto"] | None = option(None, "auto spreads a model that is too large for one GPU over all GPUs.")
    batch_tokens: int | None = option(
        None, "Tokens in a batch, padding included; if not given, what suits the device.", least=1
    )
    batch_size: int | None = option(None, "Maximum number of sequences in a batch.", least=1)
    trust_remote_code: bool = option(False, "Run code that comes with the model; only for sources you trust.")
    model_kwargs: str | None = option(None, "JSON object of further arguments of from_pretrained.", is_json=True)
    data: str | None = option(
        None,
        "Data file; if not given, the one that the cache names. Rows that were not captured are used.",
        aliases=("--data-path",),
    )
    max_samples: int = option(200, "Rows to draw at random among those that were not captured.", least=1)
    seed: int = option(42, "Seed of the rows, of the random heads and of the bootstrap.", least=0, most=2**32 - 1)
    answer: AnswerKind = option("label", "How a choice of ARC rows is answered: by its label or by its text.")
    k: tuple[str, ...] = option(
        ("1%", "5%", "10%", "20%", "30%"), "How many heads to take out, or a share of all, as in 5%; repeat for several."
    )
    draws: int = option(
        20, "Number of random sets, each with as many heads in each layer as the first k have there.", least=0, most=10_000
    )
    signal: tuple[str, ...] = option(
        (), "Further signal whose order is validated, as is the combined score's; a leading - reverses it; repeat for several."
    )
    ablate: How = option("zero", "What replaces a head's z: zero, or its mean over the prompts.")
    single: bool = option(False, "Also take out every head alone: one run of all rows for each head of the model.")
    gate_gradient: bool = option(False, "Also find the gradient of the answer's nll with respect to a gate on every head.")
    fit_weights: bool = option(
        False, "With --single, find the weights whose ranking agrees best with the effects of single heads."
    )
    bootstrap: int = option(2000, "How often the rows are drawn anew for the intervals.", least=100, most=1_000_000)
    level: float = option(
        0.95, "Level of the intervals: which share of such intervals should contain the true value.", least=0.5, most=0.999
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model is None and (self.revision or self.adapter):
            raise OptionError("--revision and --adapter: belong to a --model; give it, too")
        if self.fit_weights and not self.single:
            raise OptionError("--fit-weights: needs the effects of single heads; give --single")


@dataclass(frozen=True, kw_only=True)
class RunSettings(ScoreSettings, BootstrapSettings, CaptureSettings):
    """The options of `headscore run`: those of `capture` and `score` together."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.score_query_mode == "all_tokens":  # such scores need such a cache
            object.__setattr__(self, "queries", "all_tokens")


def pick(settings: type, options: dict[str, Any]) -> dict[str, Any]:
    """Those of `options` that are fields of a settings class."""
    return {field.name: options[field.name] for field in dataclasses.fields(settings) if field.name in options}
