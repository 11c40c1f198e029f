"""The options of the commands that bring rankings to other tools, and their lists to headscore."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import InputError, OptionError
from ..voice import option_flag
from .checked import Checked, option
from .settings import Unit

ExportFormat = Literal["csv", "parquet", "duo", "retrieval_head", "qrhead", "lofit", "shira", "peft", "card", "checkpoint"]
ImportFormat = Literal["duo", "retrieval_head", "qrhead", "lofit"]
GroupBy = Literal["mean", "max"]

_OF_FORMATS: Mapping[ExportFormat, Sequence[str]] = {  # options that one format alone has
    "duo": ("sink_size", "recent_size"),
    "checkpoint": ("model", "adapter", "allow_other_model", "trust_remote_code"),
}


@dataclass(frozen=True, kw_only=True)
class ChoiceSettings(Checked):
    """Which heads of a ranking are meant."""

    signal: str | None = option(
        None, "Order by this signal alone, reversed by a leading -, as in -ent. The combined score if not given."
    )
    top_k: int | None = option(None, "Choose this many heads, the first of all.", least=1)
    top_k_per_layer: int | None = option(None, "Choose this many heads of each layer.", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k is not None and self.top_k_per_layer is not None:
            raise OptionError("--top-k: give it or --top-k-per-layer, not both")


@dataclass(frozen=True, kw_only=True)
class ExportSettings(ChoiceSettings):
    """What a ranking is written as: the options of `headscore export`."""

    format: ExportFormat = option("csv", "The format; docs/use-your-ranking.md describes each.")
    by: Unit | None = option(None, "kv_head makes a ranking of groups out of one of heads; if not given, it stays what it is.")
    group: GroupBy = option("mean", "How a group's score is made from those of its heads: their mean, or the max.")
    sink_size: int = option(128, "Of duo: how many first tokens the other KV heads keep.", least=0, most=1 << 20)
    recent_size: int = option(256, "Of duo: how many last tokens the other KV heads keep.", least=1, most=1 << 20)
    model: str | None = option(
        None, "Of checkpoint: the model; if not given, the one that the cache names.", aliases=("--model-path",)
    )
    adapter: str | None = option(None, "Of checkpoint: PEFT adapter to merge into --model.")
    allow_other_model: bool = option(False, "Of checkpoint: accept a model other than the one that was captured.")
    trust_remote_code: bool = option(False, "Of checkpoint: run code that comes with the model; only for sources you trust.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for format, names in _OF_FORMATS.items():
            given = [name for name in names if getattr(self, name) != type(self).__dataclass_fields__[name].default]
            if given and self.format != format:
                raise InputError(f"{option_flag(given[0])}: is an option of --format {format}; leave it out")
        if self.format == "duo" and self.by == "head":
            raise OptionError("--by head: --format duo is of groups of heads; leave it out")
        if self.group != "mean" and self.by != "kv_head" and self.format != "duo":
            raise OptionError("--group: says how groups are scored, and heads are ranked; give --by kv_head, or leave it out")


@dataclass(frozen=True, kw_only=True)
class ImportSettings(Checked):
    """What a list of heads is: the options of `headscore import`."""

    format: ImportFormat | None = option(None, "Which format the list is in.", aliases=("--as",))
