"""The library's calls with their parameters; see __init__.py.

This file is made by tests/stub.py. After a change of an option or a call, make it anew: make stub
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Literal

import polars as pl

from .capture.ablation import ablated as ablated
from .capture.ablation import mean_outputs as mean_outputs
from .data.errors import DamagedShardError as DamagedShardError
from .data.errors import HeadscoreError as HeadscoreError
from .data.errors import InputError as InputError
from .data.errors import RunError as RunError
from .data.errors import UnreadableFileError as UnreadableFileError
from .data.inspection import inspect as inspect
from .data.merging import merge as merge
from .pipeline import validate as validate
from .score.evidence.control import Control as Control
from .score.ranking import rank as rank
from .score.report.charts import entropy_and_task as entropy_and_task
from .score.report.charts import heatmap as heatmap
from .score.report.charts import layer_profiles as layer_profiles
from .score.report.charts import signal_maps as signal_maps
from .score.report.charts import top_heads as top_heads
from .score.scan import rows as rows
from .score.scan import scan_cache as scan_cache
from .score.scores import Scores as Scores
from .score.validated import Validation as Validation

def capture(
    out: str | Path,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    model: str | Path = "smollm2-135m",
    revision: str | None = None,
    adapter: str | Path | None = None,
    data: str | Path = "samples",
    template: str | Path | None = None,
    chat: bool = False,
    system: str | None = None,
    generation_prompt: bool = True,
    trailing_special: bool = False,
    control: Literal["null", "shuffle"] | None = None,
    max_samples: int = 1024,
    max_length: int = 512,
    max_skipped: float = 0.01,
    seed: int = 42,
    queries: Literal["last_token", "all_tokens"] = "last_token",
    device: str = "auto",
    dtype: Literal["auto", "fp32", "fp16", "bf16"] = "auto",
    device_map: Literal["auto"] | None = None,
    on_nan: Literal["stop", "skip"] = "stop",
    batch_tokens: int | None = None,
    batch_size: int | None = None,
    share_prefixes: bool = True,
    spot_checks: bool = True,
    shard_size: int = 256,
    keep: Sequence[str] = (),
    trust_remote_code: bool = False,
    model_kwargs: str | Mapping[str, Any] | None = None,
) -> pl.DataFrame: ...
def score(
    cache: str | Path,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    partial: bool = False,
    report: bool = False,
    executor: Executor | None = None,
    score_query_mode: Literal["last_token", "all_tokens"] = "last_token",
    head_output: Literal["z", "result"] = "z",
    task_span: Sequence[str] = ("question",),
    measure: Mapping[str, Any] = {},
    signal: Mapping[str, Any] = {},
    signals: str | Path | None = None,
    weight: Mapping[str, float] = {},
    lambda_ent: float = 0.5,
    lambda_task: float = 1.0,
    fusion: Literal["rank", "rrf", "sum"] = "rank",
    norm_mode: Literal["zscore", "percentile", "ratio", "none"] = "zscore",
    within: Literal["layer", "model"] = "layer",
    by: Literal["head", "kv_head"] = "head",
    top_k: int | None = None,
    top_k_per_layer: int | None = None,
    workers: int = 1,
    dask: str | None = None,
    fresh: bool = False,
) -> Scores: ...
def report(
    cache: str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    partial: bool = False,
    score_query_mode: Literal["last_token", "all_tokens"] = "last_token",
    head_output: Literal["z", "result"] = "z",
    task_span: Sequence[str] = ("question",),
    measure: Mapping[str, Any] = {},
    signal: Mapping[str, Any] = {},
    signals: str | Path | None = None,
    weight: Mapping[str, float] = {},
    lambda_ent: float = 0.5,
    lambda_task: float = 1.0,
    fusion: Literal["rank", "rrf", "sum"] = "rank",
    norm_mode: Literal["zscore", "percentile", "ratio", "none"] = "zscore",
    within: Literal["layer", "model"] = "layer",
    by: Literal["head", "kv_head"] = "head",
    top_k: int | None = None,
    top_k_per_layer: int | None = None,
    workers: int = 1,
    dask: str | None = None,
    fresh: bool = False,
) -> Scores: ...
def run(
    out: str | Path = "headscore-results",
    *,
    overwrite: bool = False,
    report: bool = True,
    progress: Callable[[int, int], None] | None = None,
    model: str | Path = "smollm2-135m",
    revision: str | None = None,
    adapter: str | Path | None = None,
    data: str | Path = "samples",
    template: str | Path | None = None,
    chat: bool = False,
    system: str | None = None,
    generation_prompt: bool = True,
    trailing_special: bool = False,
    control: Literal["null", "shuffle"] | None = None,
    max_samples: int = 1024,
    max_length: int = 512,
    max_skipped: float = 0.01,
    seed: int = 42,
    queries: Literal["last_token", "all_tokens"] = "last_token",
    device: str = "auto",
    dtype: Literal["auto", "fp32", "fp16", "bf16"] = "auto",
    device_map: Literal["auto"] | None = None,
    on_nan: Literal["stop", "skip"] = "stop",
    batch_tokens: int | None = None,
    batch_size: int | None = None,
    share_prefixes: bool = True,
    spot_checks: bool = True,
    shard_size: int = 256,
    keep: Sequence[str] = (),
    trust_remote_code: bool = False,
    model_kwargs: str | Mapping[str, Any] | None = None,
    score_query_mode: Literal["last_token", "all_tokens"] = "last_token",
    head_output: Literal["z", "result"] = "z",
    task_span: Sequence[str] = ("question",),
    measure: Mapping[str, Any] = {},
    signal: Mapping[str, Any] = {},
    signals: str | Path | None = None,
    weight: Mapping[str, float] = {},
    lambda_ent: float = 0.5,
    lambda_task: float = 1.0,
    fusion: Literal["rank", "rrf", "sum"] = "rank",
    norm_mode: Literal["zscore", "percentile", "ratio", "none"] = "zscore",
    within: Literal["layer", "model"] = "layer",
    by: Literal["head", "kv_head"] = "head",
    top_k: int | None = None,
    top_k_per_layer: int | None = None,
) -> Scores: ...
def control(
    cache: str | Path,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    partial: bool = False,
    score_query_mode: Literal["last_token", "all_tokens"] = "last_token",
    head_output: Literal["z", "result"] = "z",
    task_span: Sequence[str] = ("question",),
    measure: Mapping[str, Any] = {},
    signal: Mapping[str, Any] = {},
    signals: str | Path | None = None,
    weight: Mapping[str, float] = {},
    lambda_ent: float = 0.5,
    lambda_task: float = 1.0,
    fusion: Literal["rank", "rrf", "sum"] = "rank",
    norm_mode: Literal["zscore", "percentile", "ratio", "none"] = "zscore",
    within: Literal["layer", "model"] = "layer",
    by: Literal["head", "kv_head"] = "head",
    top_k: int | None = None,
    top_k_per_layer: int | None = None,
    against: str | Path | None = None,
    random_span: bool = False,
    fdr: float = 0.05,
    two_sided: bool = False,
    seed: int = 42,
) -> Control: ...
def signals(
    cache: str | Path | None = None,
    *,
    score_query_mode: Literal["last_token", "all_tokens"] = "last_token",
    head_output: Literal["z", "result"] = "z",
    task_span: Sequence[str] = ("question",),
    measure: Mapping[str, Any] = {},
    signal: Mapping[str, Any] = {},
    signals: str | Path | None = None,
    weight: Mapping[str, float] = {},
    lambda_ent: float = 0.5,
    lambda_task: float = 1.0,
    fusion: Literal["rank", "rrf", "sum"] = "rank",
    norm_mode: Literal["zscore", "percentile", "ratio", "none"] = "zscore",
    within: Literal["layer", "model"] = "layer",
    by: Literal["head", "kv_head"] = "head",
    top_k: int | None = None,
    top_k_per_layer: int | None = None,
) -> pl.DataFrame: ...

__version__: str
__all__ = [
    "Control",
    "DamagedShardError",
    "HeadscoreError",
    "InputError",
    "RunError",
    "Scores",
    "UnreadableFileError",
    "Validation",
    "__version__",
    "ablated",
    "capture",
    "control",
    "entropy_and_task",
    "heatmap",
    "inspect",
    "layer_profiles",
    "mean_outputs",
    "merge",
    "rank",
    "report",
    "rows",
    "run",
    "scan_cache",
    "score",
    "signal_maps",
    "signals",
    "top_heads",
    "validate",
]
