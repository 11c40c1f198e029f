"""What a cache says about itself: the content of `cache.json` and of every shard's attributes."""

import json
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict, get_args

from ..errors import InputError, NewerFormatError
from ..options.settings import QueryMode
from ..prompts.templates import MAX_SPANS
from ..prompts.tokens import MarkedPiece

FORMAT = "headscore-cache"
FORMAT_VERSION = 1
MAX_HEADS = 1 << 16  # in all layers; today's largest models have 16,128. A ranking has a line of each, which takes some KB
MAX_LAYERS = 1024  # the deepest models of today have 126; each layer of each array takes time to read, however small it is
SPAN_RULE = "trimmed"  # how masks are made of spans; another rule is to have another name
LONGEST_SHOWN = 60  # characters of a value in an error message


class DataFacts(TypedDict):
    """The data file: its path as given, the hex sha256 of its bytes, how many rows it has, and their style."""

    path: str
    sha256: str
    rows: int
    style: str


class NamedText(TypedDict):
    """A template, or a chat template's frame."""

    name: str
    text: str


class CaptureFacts(TypedDict):
    """The options that decide what is captured; `dtype` is the one in use. Caches of older versions have fewer."""

    queries: str
    max_samples: NotRequired[int]
    max_length: NotRequired[int]
    seed: NotRequired[int]
    dtype: NotRequired[str]
    shard_size: NotRequired[int]
    chat: NotRequired[dict[str, Any] | None]
    special_tokens: NotRequired[dict[str, list[str]] | None]
    spans: NotRequired[str]
    keep: NotRequired[list[str]]
    control: NotRequired[str]
    compression: NotRequired[str]


class Attention(TypedDict):
    """How attention was captured: `recorded` or `eager`; whether rows sum to 1, and whether there are norms of W_O z."""

    way: NotRequired[str]
    full_rows: bool
    result_norms: bool


class Dims(TypedDict):
    """Of the model; those that layers differ in are left out."""

    layers: int
    heads: int
    kv_heads: NotRequired[int]
    head_dim: NotRequired[int]
    hidden_size: NotRequired[int]


class Plan(TypedDict):
    """How many rows are drawn, and how many shards they make."""

    rows: NotRequired[int]
    shards: int


class Example(TypedDict):
    """A sample as pieces of text with the spans that they are in."""

    row: int
    pieces: list[MarkedPiece]


class ExampleTokens(TypedDict):
    """A sample as the texts of its tokens."""

    row: int
    tokens: list[str]


class SelfCheckFacts(TypedDict):
    """What the self-check compared, and how far recorded values were from expected ones. Older versions told less."""

    rows: list[int]
    lengths: list[int]
    checked_tokens: NotRequired[int]
    longest_tokens: NotRequired[int]
    largest_difference: dict[str, float]
    exact_difference: dict[str, float]
    shared_prefixes: bool
    length_rules: dict[str, object]


class SkippedRow(TypedDict):
    """A row of the data file that is left out, and why."""

    row: int
    reason: str


class Metadata(TypedDict):
    """What a cache says about itself, as docs/cache-format.md specifies it. Unknown keys stay in it.

    What the model adds is not there before the model is loaded.
    """

    format: str
    format_version: int
    versions: dict[str, str]
    model: dict[str, Any]
    data: DataFacts
    templates: list[NamedText]
    span_names: list[str]
    settings: CaptureFacts
    plan: Plan
    example: Example
    examples: NotRequired[list[ExampleTokens]]
    dims: NotRequired[Dims]
    layers: NotRequired[list[int]]
    projections: NotRequired[list[dict[str, str | None]]]
    attention: NotRequired[Attention]
    self_check: NotRequired[SelfCheckFacts]
    control: NotRequired[dict[str, Any]]  # in the record of a control's results, never in a cache


class ShardMetadata(Metadata, total=False):
    """What a shard says about itself besides: its number, the rows it leaves out, and what is known of its samples."""

    shard: int
    skipped: list[SkippedRow]
    spot_checks: list[dict[str, Any]]
    kept: dict[str, list[Any]]


METADATA_SHAPE: dict[str, Any] = {  # what a reader relies on; a list has elements of the shape given
    "versions": {},
    "model": {},
    "data": {},
    "templates": [{"name": str, "text": str}],
    "span_names": [str],
    "settings": {"queries": str},
    "attention": {"full_rows": bool, "result_norms": bool},
    "dims": {"layers": int, "heads": int},
    "layers": [int],
    "plan": {"shards": int},
    "example": {"row": int, "pieces": [{"text": str, "spans": [str]}]},
}

OPTIONAL_SHAPE: dict[str, Any] = {  # the same, of keys that need not be there; a tuple holds types of which one will do
    "examples": [{"row": int, "tokens": [str]}],
    "spot_checks": [{"row": int, "tokens": int, "way": str, "largest_difference": {}}],
    "kept": {},
    "projections": [dict.fromkeys(("query", "key", "value", "output"), (str, type(None)))],
}

_OPTIONAL_INNER: dict[str, dict[str, Any]] = {  # the same, of what need not be in a key
    "settings": {"keep": [str], "control": str},
    "dims": {"kv_heads": int, "head_dim": int, "hidden_size": int},
}

_SHARD_SHAPE: dict[str, Any] = {"shard": int, "skipped": [{"row": int, "reason": str}]}


def check_metadata(metadata: Any, where: str, *, of_shard: bool = False) -> None:
    """Raises NewerFormatError for a newer version of this format, and InputError where what readers rely on is not there."""
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise InputError(f"{where}: is not a headscore cache")
    version = metadata.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        told = f"{where}: cache format {version!r}, this headscore reads {FORMAT_VERSION}"
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise NewerFormatError(f"{told}; upgrade headscore to read it")
        raise InputError(f"{told}; capture it again")
    optional = {key: shape for key, shape in OPTIONAL_SHAPE.items() if key in metadata}
    for key, shape in (METADATA_SHAPE | optional | (_SHARD_SHAPE if of_shard else {})).items():
        if not has_shape(metadata.get(key), shape):
            raise InputError(f"{where}: its metadata has no usable '{key}'; capture it again")
    if unusable := _unusable_optional(metadata):
        raise InputError(f"{where}: its metadata has no usable '{unusable}'; capture it again")
    if (compression := metadata["settings"].get("compression", "none")) != "none":  # caches before 0.2 name it
        raise InputError(f"{where}: is compressed ({compression!r:.20}), which is no longer read; capture it again")
    try:
        json.dumps(metadata, ensure_ascii=False).encode()
    except ValueError as error:  # half a surrogate pair, which no file and no terminal takes
        raise InputError(f"{where}: its metadata is not text that can be written; capture it again") from error
    names, queries = metadata["span_names"], metadata["settings"]["queries"]
    if not 0 < len(names) <= MAX_SPANS or len(set(names)) < len(names):
        raise InputError(f"{where}: its metadata has no usable 'span_names'; capture it again")
    if metadata["plan"]["shards"] < 1 or queries not in get_args(QueryMode):
        raise InputError(f"{where}: its metadata has no usable 'plan' or 'settings'; capture it again")


def _unusable_optional(metadata: Mapping[str, Any]) -> str | None:
    """A key in which something that need not be there is not as it should be."""
    for key, shapes in _OPTIONAL_INNER.items():
        if not all(has_shape(metadata[key][name], shape) for name, shape in shapes.items() if name in metadata[key]):
            return key
    dims: dict[str, int] = metadata["dims"]
    layers: list[int] = metadata["layers"]
    if any(dims.get(name, 1) < 1 for name in _OPTIONAL_INNER["dims"]) or dims["heads"] % dims.get("kv_heads", 1):
        return "dims"
    return "projections" if len(metadata.get("projections", layers)) != len(layers) else None


def has_shape(value: Any, shape: Any) -> bool:
    """Whether a value of JSON's kinds has what `METADATA_SHAPE` and the like say."""
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(has_shape(value.get(key), inner) for key, inner in shape.items())
    if isinstance(shape, list):
        return isinstance(value, list) and all(has_shape(inner, shape[0]) for inner in value)
    return type(value) in (shape if isinstance(shape, tuple) else (shape,))  # True is no integer here


def model_name(model: Mapping[str, object]) -> str:
    """What to call the `model` of a cache: the name that was given and, where there is one, the adapter merged into it."""
    name, adapter = str(model.get("name", "")), model.get("adapter")
    if not isinstance(adapter, dict):
        return name
    own = f" of {adapter.get('base')}" if adapter.get("base") else " in it"
    return f"{name} with the {adapter.get('type')} adapter" + (
        own if adapter.get("name") == name else f" {adapter.get('name')}"
    )


def identity(metadata: Metadata) -> dict[str, Any]:
    """The parts of the metadata that decide what every shard holds; two captures are the same if they agree in all of them.

    Names, paths and versions are not among them: a capture may go on in another place, and on another machine.
    """
    said: Mapping[str, Any] = metadata
    parts: dict[str, Any] = {key: said[key] for key in _IDENTITY if key in said}
    if "dims" in metadata:  # the others follow from the model
        parts["dims"] = {key: metadata["dims"].get(key) for key in ("layers", "heads")}
    parts |= {name: metadata["model"].get(key) for name, key in _FINGERPRINTS.items() if key in metadata["model"]}
    parts["data"] = metadata["data"].get("sha256")
    settings = {key: value for key, value in metadata["settings"].items() if key != "compression"}  # always none
    return parts | {f"settings {key}": value for key, value in (_FORMER_SETTINGS | settings).items()}


_FORMER_SETTINGS: dict[str, Any] = {  # what caches without these keys were made with
    "special_tokens": None,
    "spans": "without white space",
    "keep": [],
    "control": None,
}
_IDENTITY = ("templates", "span_names", "attention", "layers", "plan")  # as they are
_FINGERPRINTS = {"model": "fingerprint", "tokenizer": "tokenizer_fingerprint"}


def differences(existing: Metadata, wanted: Metadata) -> list[str]:
    """What makes `wanted` another capture than `existing`, one phrase each; what it does not tell yet is passed over."""
    before, after = identity(existing), identity(wanted)
    different = [name for name in after if before.get(name) != after[name]]
    renamed = existing["model"].get("name") != wanted["model"].get("name")
    if different and renamed and "model" not in after:  # its weights are not known yet, but its name is
        different.append("model")
    return [_difference(name, existing, wanted, before.get(name), after.get(name)) for name in different]


def _difference(name: str, existing: Metadata, wanted: Metadata, before: Any, after: Any) -> str:
    def called(metadata: Metadata, value: Any) -> str:
        given = metadata["data"].get("path") if name == "data" else model_name(metadata["model"])
        return f"{given}" + (f" [{value!s:.12}]" if value else "")

    if name in ("data", *_FINGERPRINTS):
        return f"{name} was {called(existing, before)}, now {called(wanted, after)}"
    if name == "settings keep":
        name, before, after = "--keep", *(", ".join(columns) or "nothing" for columns in (before, after))
    if name == "settings control":
        name, before, after = "--control", *(kind or "not given" for kind in (before, after))
    old, new = str(before), str(after)
    if max(len(old), len(new)) > LONGEST_SHOWN:  # then what is shown begins shortly before the first difference
        first = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
        old, new = (_excerpt(text, max(0, first - LONGEST_SHOWN // 3)) for text in (old, new))
    return f"{name} was {old}, now {new}"


def _excerpt(text: str, start: int) -> str:
    stop = start + LONGEST_SHOWN
    return "…" * (start > 0) + text[start:stop] + "…" * (stop < len(text))
