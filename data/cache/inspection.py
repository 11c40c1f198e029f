"""What `headscore inspect` tells about a cache: as a dict for machines, as text for people."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from ..errors import DamagedShardError, ForeignShardError, UnreadableFileError, printable
from ..files.whole_file import given_path
from ..options.signatures import library_call
from ..prompts.controls import WHAT_CONTROLS_ARE
from ..prompts.tokens import MarkedPiece
from .folder import open_cache
from .metadata import (
    Attention,
    CaptureFacts,
    DataFacts,
    Dims,
    Example,
    NamedText,
    SelfCheckFacts,
    SkippedRow,
    model_name,
)
from .reader import verify_shard

MOST_SKIPPED_SHOWN = 10
HOW_TO_COMPLETE = "the same `headscore capture` command makes them"


class ShardCounts(TypedDict):
    """How many shards are there, how many were planned, and the numbers of the missing ones, as in '0-2, 7'."""

    there: int
    planned: int
    missing: str


class SpotCheckFacts(TypedDict):
    """How many samples of how many shards were run again, in which ways, and the largest difference; None without numbers."""

    samples: int
    shards: int
    ways: list[str]
    largest_difference: float | None


class CacheFacts(TypedDict):
    """What `inspect` tells; the metadata in it is that of docs/cache-format.md."""

    cache: str
    format_version: int
    versions: dict[str, str]
    model: Mapping[str, object]
    data: DataFacts
    templates: list[NamedText]
    span_names: list[str]
    settings: CaptureFacts
    dims: Dims
    layers: list[int]
    attention: Attention
    projections: list[dict[str, str | None]] | None
    self_check: SelfCheckFacts | None
    samples: int
    tokens: int
    bytes: int
    shards: ShardCounts
    skipped: list[SkippedRow]
    spot_checks: SpotCheckFacts
    example: Example | None
    verified: bool
    damaged: list[str]
    unreadable: list[str]


@library_call()
def inspect(cache: str | Path, *, verify: bool = False) -> CacheFacts:
    """Facts about a cache: model, data, templates, dims, samples, tokens, size, skipped rows and a marked example.

    With `verify` every array of every shard is read back and checked. `damaged` lists what is wrong, one line per shard, and
    `unreadable` the shards that the system refuses to read, which may be whole. Raises InputError for what is not a cache,
    and NewerFormatError where it or a shard of it is of a newer format.
    """
    opened = open_cache(given_path("cache", cache))
    samples = tokens = 0
    damaged, unreadable, skipped, spot_checks = [], [], [], []
    for path in opened.shards:
        try:
            with opened.open_shard(path) as shard:
                if verify:
                    verify_shard(shard)
                else:
                    shard.require_arrays()
                samples, tokens = samples + shard.samples, tokens + shard.tokens
                skipped += shard.skipped
                spot_checks += [entry | {"shard": shard.number} for entry in shard.metadata.get("spot_checks", [])]
        except (DamagedShardError, ForeignShardError) as error:
            damaged.append(str(error))
        except UnreadableFileError as error:
            unreadable.append(str(error))
    metadata = opened.metadata
    return {
        "cache": str(opened.path),
        "format_version": metadata["format_version"],
        "versions": metadata["versions"],
        "model": metadata["model"],
        "data": metadata["data"],
        "templates": metadata["templates"],
        "span_names": metadata["span_names"],
        "settings": metadata["settings"],
        "dims": metadata["dims"],
        "layers": metadata["layers"],
        "attention": metadata["attention"],
        "projections": metadata.get("projections"),
        "self_check": metadata.get("self_check"),
        "samples": samples,
        "tokens": tokens,
        "bytes": sum(map(_size, opened.shards)),
        "shards": {"there": len(opened.shards), "planned": opened.planned, "missing": opened.missing_ranges()},
        "skipped": skipped,
        "spot_checks": _spot_check_facts(spot_checks),
        "example": metadata.get("example"),
        "verified": verify,
        "damaged": damaged,
        "unreadable": unreadable,
    }


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # then it is among the unreadable ones, or gone
        return 0


def facts_text(facts: CacheFacts) -> str:
    """The facts of `inspect` as plain text; characters that could drive a terminal are shown escaped."""
    model, data, settings, dims = facts["model"], facts["data"], facts["settings"], facts["dims"]
    shards = facts["shards"]
    lines = [
        f"cache     {facts['cache']} (format {facts['format_version']}, {facts['bytes'] / 1e6:.1f} MB)",
        f"model     {model_name(model)} ({model.get('type')}, {settings.get('dtype')}): "
        f"{dims.get('layers')} layers of {dims.get('heads')} heads" + _widths(dims),
        f"attention {_attention(facts['attention'])}",
        f"checked   {_checked(facts)}",
        f"          {_spot_checked(facts)}",
        f"data      {data.get('path')} ({data.get('style')} style, {data.get('rows')} rows)",
        f"samples   {facts['samples']} with {facts['tokens']} tokens; queries {settings.get('queries')}",
        f"shards    {shards['there']} of {shards['planned']}",
        *([f"          missing {shards['missing']}; {HOW_TO_COMPLETE}"] if shards["missing"] else []),
        f"spans     {', '.join(facts['span_names'])}",
        *([f"control   {settings['control']}: {_control(settings)}"] if settings.get("control") else []),
        *([f"kept      {', '.join(settings['keep'])}"] if settings.get("keep") else []),
        f"skipped   {len(facts['skipped'])} rows",
    ]
    lines += [f"          row {entry['row']}: {entry['reason']}" for entry in facts["skipped"][:MOST_SKIPPED_SHOWN]]
    if len(facts["skipped"]) > MOST_SKIPPED_SHOWN:
        lines.append(f"          … and {len(facts['skipped']) - MOST_SKIPPED_SHOWN} more in skipped.jsonl or with --json")
    for template in facts["templates"]:
        lines += ["", f"template {template['name']}", *(f"  | {line}" for line in template["text"].split("\n"))]
    if facts["example"]:
        lines += [
            "",
            f"example, row {facts['example']['row']}, with [span: its tokens]",
            *marked_lines(facts["example"]["pieces"]),
        ]
    if facts["verified"]:
        whole = shards["there"] - len(facts["damaged"]) - len(facts["unreadable"])
        refused = f", {len(facts['unreadable'])} cannot be read" if facts["unreadable"] else ""
        lines += ["", f"verified  {whole} shards are whole, {len(facts['damaged'])} damaged{refused}"]
    lines += [f"damaged   {line}" for line in facts["damaged"]] + [f"refused   {line}" for line in facts["unreadable"]]
    return "\n".join(printable(line) for line in lines)


def _control(settings: CaptureFacts) -> str:
    return WHAT_CONTROLS_ARE.get(settings["control"], "prompts of another kind")


def _widths(dims: Dims) -> str:
    kv_heads = f", {dims['kv_heads']} kv heads" if "kv_heads" in dims else ""
    return kv_heads + (f", head dim {dims['head_dim']}" if "head_dim" in dims else "")


def _attention(facts: Attention) -> str:
    way = "by the model's own eager attention" if facts.get("way") == "eager" else "beside SDPA"
    sinks = "" if facts["full_rows"] else "; rows sum to less than 1 (sinks)"
    return f"recorded {way}{sinks}" + ("" if facts["result_norms"] else "; no result norms")


def _spot_check_facts(entries: list[dict[str, Any]]) -> SpotCheckFacts:
    """What was run again of how many shards, in what way, and the largest difference from what is stored."""
    worst = [value for entry in entries for value in entry["largest_difference"].values() if isinstance(value, float)]
    return {
        "samples": len(entries),
        "shards": len({entry["shard"] for entry in entries}),
        "ways": sorted({entry["way"] for entry in entries}),
        "largest_difference": max(worst, default=None),
    }


def _checked(facts: CacheFacts) -> str:
    """Up to which length values were compared with the model's own, before anything was captured."""
    check = facts["self_check"]
    tokens, longest = (check.get("checked_tokens"), check.get("longest_tokens")) if isinstance(check, dict) else (None, None)
    if tokens is None:
        return "against the model's own eager attention, up to a length that the cache does not say"
    short = "" if tokens == longest else f" of the {longest} that the longest prompt has; beyond that unchecked"
    return f"against the model's own eager attention, up to {tokens} tokens{short}"


def _spot_checked(facts: CacheFacts) -> str:
    checks, shards = facts["spot_checks"], facts["shards"]["there"]
    if not checks["samples"]:
        return "no spot checks"
    ways = {"eager": "with its own eager attention", "own": "with the attention that it comes with (output norms only)"}
    ways["none"] = "without a comparison (no memory for eager attention, no output norms to compare)"
    how = " or ".join(ways.get(way, way) for way in checks["ways"])
    largest = "" if checks["largest_difference"] is None else f"; largest difference {checks['largest_difference']:.1g}"
    return f"{checks['samples']} samples of {checks['shards']} of {shards} shards run again, alone, {how}{largest}"


def marked_lines(pieces: list[MarkedPiece]) -> list[str]:
    """The example's text with every piece in a span put in brackets, `template` left plain."""
    text = ""
    for piece in pieces:
        names = [name for name in piece["spans"] if name != "template"]
        text += f"[{'+'.join(names)}:{piece['text']}]" if names else piece["text"]
    return [f"  | {line}" for line in text.split("\n")]
