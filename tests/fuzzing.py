"""Mutated input files, and a process of its own that reads many of them in turn, as one may crash it, hang it or fill memory.

python tests/fuzzing.py KIND SEED FIRST STOP prints a line of JSON for each case: how it ended, in what time, and the memory at
its peak by then. `run` is for tests; it starts that and goes on after a case that ended the process.
"""

import datetime
import functools
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

MAX_SECONDS = 20
MAX_MIB = 1024
Read = Callable[[Path], str]


def run(kind: str, cases: int, seed: int = 0) -> Counter[str]:
    """How often each outcome was found: `read` and `refused`, and faults, which each name their case."""
    found: Counter[str] = Counter()
    first = 0
    while first < cases:
        command = [sys.executable, __file__, kind, str(seed), str(first), str(cases)]
        child = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
        lines = [json.loads(line) for line in child.stdout.splitlines()]
        found.update(line["ended"] for line in lines if line["ended"])
        first = lines[-1]["case"] + 1 if lines else cases
        if not lines or child.returncode or child.stderr:
            which = lines[-1]["case"] if lines else first
            found[f"{kind} {which} of seed {seed}: exit {child.returncode}, stderr {child.stderr[-300:]!r}"] += 1
    return found


def _environment() -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


# --------------------------------------------------------------------------------------------------------------- mutations

NUMBERS = (0, 1, -1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63, 10**400, 0.5, 1e308, 10**9, 2**22)
TEXTS = ("", " ", "a", "[UNK]", "\x00", "\x1b[31m", "\u202e", "\ufffd", "é", "👍🏽", "Ġ", "▁", ".*", "A" * 5000)
VALUES = (*NUMBERS, *TEXTS, None, True, False, [], {}, [[]], {"a": 1})
# Parts of a tokenizer.json that are valid in themselves.
PARTS: dict[str, tuple[Any, ...]] = {
    "decoder": (
        None,
        {"type": "Strip", "content": "e", "start": 100, "stop": 100},
        {"type": "Replace", "pattern": {"String": ""}, "content": "A" * 100},
        {"type": "WordPiece", "prefix": "", "cleanup": True},
        {"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": True},
        {"type": "BPEDecoder", "suffix": ""},
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        {"type": "Sequence", "decoders": []},
    ),
    "normalizer": (
        None,
        {"type": "Lowercase"},
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"Regex": ""}, "content": "a"},
        {"type": "Strip", "strip_left": True, "strip_right": True},
        {"type": "Sequence", "normalizers": [{"type": "NFKD"}, {"type": "StripAccents"}]},
    ),
    "pre_tokenizer": (
        None,
        {"type": "Whitespace"},
        {"type": "Digits", "individual_digits": True},
        {"type": "Split", "pattern": {"Regex": ".?"}, "behavior": "Removed", "invert": True},
        {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": False},
        {"type": "FixedLength", "length": 0},
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False},
    ),
    "post_processor": (
        None,
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        {"type": "BertProcessing", "sep": ["</s>", 4294967295], "cls": ["<s>", 2147483648]},
        {"type": "RobertaProcessing", "sep": ["", 1], "cls": ["", 0], "trim_offsets": True, "add_prefix_space": True},
    ),
    "model": (
        {"type": "WordLevel", "vocab": {"<s>": 0, "a": 1}, "unk_token": "[UNK]"},
        {"type": "WordLevel", "vocab": {"<s>": 0, "[UNK]": 4294967295}, "unk_token": "[UNK]"},
        {"type": "WordPiece", "vocab": {}, "unk_token": "u", "continuing_subword_prefix": "", "max_input_chars_per_word": 0},
        {"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0]], "byte_fallback": True},
        {"type": "Unigram", "unk_id": 0, "vocab": [["", -1e308], ["a", 1e308]], "byte_fallback": False},
        {"type": "BPE", "vocab": {"a": 4294967295}, "merges": [], "unk_token": "a", "byte_fallback": True},
    ),
    "truncation": ({"direction": "Left", "max_length": 0, "strategy": "OnlySecond", "stride": 0},),
    "padding": (
        {
            "strategy": {"Fixed": 10**9},
            "direction": "Left",
            "pad_to_multiple_of": 10**9,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "",
        },
    ),
}


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (object or list, key) in a value; of the many entries of a vocabulary the first few."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys)[:40]:
        yield value, key
        yield from _places(value[key])


def mutated_tokenizer(content: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """A tokenizer.json with up to three parts replaced or removed; two in three are replaced by one of the same kind."""
    made: dict[str, Any] = json.loads(json.dumps(content))
    for _ in range(chance.randint(1, 3)):
        part = chance.choice(list(PARTS))
        holder, key = chance.choice(list(_places(made)))
        how, old = chance.randrange(6), holder[key]
        if how < 2:
            made[part] = chance.choice(PARTS[part])
        elif how == 2:
            holder[key] = chance.choice(VALUES)
        elif how == 3 and (names := [name for name in ("vocab", "merges") if made["model"].get(name)]):
            entries = made["model"][chance.choice(names)]
            for _ in range(chance.choice((1, 10, len(entries) // 2))):
                if entries:
                    entries.pop(chance.choice(list(entries)) if isinstance(entries, dict) else chance.randrange(len(entries)))
        elif isinstance(old, bool):
            holder[key] = not old
        elif isinstance(old, int):
            holder[key] = chance.choice(NUMBERS)
        elif isinstance(old, str) and key != "type":
            holder[key] = chance.choice(TEXTS)
    return made


def mutated_bytes(content: bytes, chance: random.Random) -> bytes:
    """Bytes with one change or up to eight, cut off, or with a part put elsewhere."""
    made = bytearray(content)
    how = chance.randrange(10)
    place = chance.randrange(len(made))
    if how == 0:
        return bytes(made[:place])
    if how == 1:
        part = made[place : place + chance.randint(1, 64)]
        return bytes(made[: chance.randrange(len(made))] + part + made[place:])
    for _ in range(1 if how < 7 else chance.randint(2, 8)):
        made[chance.randrange(len(made))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
    return bytes(made)


# ------------------------------------------------------------------------------------------------------------ kinds of file


def parquet_cases(folder: Path) -> tuple[Callable[[random.Random], Path], Read]:
    """Parquet files with every kind of column, in every compression; they are read as `--data`, all their columns kept."""
    import polars as pl

    from headscore.capture.inputs.tokenising import read_prompts
    from headscore.data.options.settings import CaptureSettings
    from headscore.data.prompts import rows as data_rows

    # Each file is read twice, and need be tried in a process of its own once.
    data_rows._require_survived = functools.lru_cache(2)(data_rows._require_survived)  # type: ignore[assignment]
    day = datetime.datetime(2024, 2, 3, 4, 5, 6)
    rows = [
        {
            "question": f"Why {number}? é" + "x" * number,
            "choices": {"text": ["ice", "fire"], "label": ["A", "B"]},
            "day": day.date(),
            "time": day,
            "span": datetime.timedelta(days=number),
            "price": Decimal(number) / 4,
            "score": number / 3,
            "yes": bool(number % 2),
            "lists": [[number], []],
            "none": None,
        }
        for number in range(40)
    ]
    frame = pl.DataFrame(rows).with_columns(kind=pl.lit("a").cast(pl.Categorical), small=pl.lit(3, pl.UInt8))
    whole = []
    for compression in ("uncompressed", "zstd", "snappy", "gzip", "lz4", "brotli"):
        content = io.BytesIO()
        frame.write_parquet(content, compression=compression, row_group_size=16)
        whole.append(content.getvalue())

    def make(chance: random.Random) -> Path:
        path = folder / "d.parquet"
        path.write_bytes(mutated_bytes(chance.choice(whole), chance))
        return path

    def read(path: Path) -> str:
        prompts = read_prompts(CaptureSettings(data=str(path), keep=("span", "price", "day", "lists")))
        return repr((prompts.drawn, prompts.kept, prompts.sha256))

    return make, read


def yaml_cases(folder: Path) -> tuple[Callable[[random.Random], Path], Read]:
    """Files of options, as `--config` reads them; what is read is what PyYAML itself reads."""
    import yaml

    from headscore.data.files.strict_yaml import read_yaml
    from headscore.data.options.configuration import read_configuration
    from headscore.data.options.settings import ScoreSettings

    names = {name: name for name in (*ScoreSettings.__dataclass_fields__, "cache", "out")}
    base = yaml.safe_dump(
        {"task_span": ["question", "choices"], "weight": {"out": 1.0, "lift": 2}, "top_k": 20, "lambda_ent": 0.5, "record": {}}
    )
    pieces = (
        *("&a [x, x]", "*a", "<<: *a", "<<: {top_k: 1}", "top_k: 1\ntop-k: 2", "? ", "- ", "[" * 50, "{a: " * 30, "!!set {a}"),
        *("!!timestamp '9999999-1-1'", "!!python/object:os.system x", "!!binary 'a'", "!!int x", "!!float []", "1:" * 50 + "1"),
        *(
            "2024-99-99",
            "0x" + "f" * 500,
            "9" * 5000,
            "1e999",
            ".nan",
            "\x00",
            "\x1b",
            "\ufeff",
            "\u202e",
            '"\\ud800"',
            "--- \n",
        ),
        *("'", '"', "|\n", ">\n", "%YAML 9.9\n---\n", "~nobody/x", '"a\\0b"', "yes", "null", "lambda-ent: 1", "\t", "#", ": "),
    )

    mild = ("1", "2.5", "-3", "[question]", "{out: 2}", "rank", "model", "'x'", "# a comment", "within: model", "fusion: rrf")

    def make(chance: random.Random) -> Path:
        lines = base.split("\n")
        for _ in range(chance.randint(1, 2)):
            place, piece = chance.randrange(len(lines)), chance.choice(chance.choice((pieces, mild)))
            start = chance.randrange(len(lines[place]) + 1)
            key = lines[place].partition(":")[0]
            as_line = (f"{key}: {piece}", piece, f"{key}: {piece}", key.replace("_", "-") + ": 1")
            lines[place : place + chance.randrange(2)] = [
                chance.choice(
                    (*as_line, lines[place][:start] + piece + lines[place][start:], lines[chance.randrange(len(lines))])
                )
            ]
        text = "\n".join(lines)
        path = folder / "c.yaml"
        path.write_bytes(text.encode(errors="surrogatepass") if chance.randrange(8) else mutated_bytes(text.encode(), chance))
        return path

    def read(path: Path) -> str:
        found = read_configuration(path, names)
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
        if repr(read_yaml(path)) != repr(plain):
            raise AssertionError(f"{found} is not what PyYAML reads")
        ScoreSettings(**{name: value for name, value in found.items() if name not in ("cache", "out")})
        return repr(found)

    return make, read


def tokenizer_cases(folder: Path) -> tuple[Callable[[random.Random], Path], Read]:
    """tokenizer.json of several families, loaded, then used for prompts with all that a capture asks of it."""
    import families
    import tiny
    from transformers.utils import logging

    from headscore.capture.inputs.tokenising import Marker, encode_shards, first_samples, read_prompts
    from headscore.capture.model.models import load_tokenizer, tokenizer_fingerprint
    from headscore.capture.model.sources import Source
    from headscore.capture.writing.written_metadata import _example, _examples
    from headscore.data.options.settings import CaptureSettings

    logging.set_verbosity_error()
    saved = []
    for number, made in enumerate([tiny.tokenizer(), *map(families.tokenizer, ("llama2", "unigram", "gpt2"))]):
        made.save_pretrained(folder / f"m{number}")
        saved.append((folder / f"m{number}", json.loads((folder / f"m{number}" / "tokenizer.json").read_text())))
    settings = CaptureSettings(max_samples=6, max_skipped=1.0)
    prompts = read_prompts(settings)

    def make(chance: random.Random) -> Path:
        path, content = chance.choice(saved)
        (path / "tokenizer.json").write_text(json.dumps(mutated_tokenizer(content, chance)))
        return path

    def read(path: Path) -> str:
        tokenizer = load_tokenizer(Source(str(path), str(path), False))
        tokenizer_fingerprint(tokenizer)
        shards = encode_shards(prompts, tokenizer, settings)
        marker = Marker(tokenizer, prompts.maker.span_names)
        first = first_samples(prompts, shards, [entry for shard in shards for entry in shard.skipped], marker, settings)
        shown = _example(first[0], prompts.maker.span_names, tokenizer), _examples(first, tokenizer)
        return repr([(sample.ids.tolist(), sample.span.tolist()) for sample in first]) + repr(shown)

    return make, read


KINDS = {"parquet": parquet_cases, "yaml": yaml_cases, "tokenizer": tokenizer_cases}


# ------------------------------------------------------------------------------------------------------------- the process


def _peak_mib() -> int:
    return peak_bytes() >> 20


def peak_bytes() -> int:
    """The peak of this process's memory since its program was started; what the system sums up has that of its parent in it."""
    found = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(found.split()[1]) << 10


def _ended(read: Read, path: Path) -> str:
    """How a case ended: read twice with the same result, or refused in one line."""
    from headscore.data.errors import HeadscoreError
    from headscore.data.prompts.alignment import _decoded

    try:
        _decoded.cache_clear()
        first = read(path)
        _decoded.cache_clear()
        return "read" if read(path) == first else "another result"
    except HeadscoreError as error:
        message = str(error)
        fits = error.exit_status == 2 and "\n" not in message and len(message) < 1000
        return "refused" if fits else f"told badly: {error.exit_status} {message[:200]!r}"
    except BaseException as error:
        return f"traceback: {type(error).__name__}: {str(error)[:200]!r}"


def main(kind: str, seed: int, first: int, stop: int) -> None:
    """Print a line before each case, in case it ends the process, and one after it."""
    with tempfile.TemporaryDirectory() as folder:
        make, read = KINDS[kind](Path(folder))
        for case in range(first, stop):
            path = make(random.Random(f"{kind} {seed} {case}"))
            print(json.dumps({"case": case, "ended": None}), flush=True)
            signal.alarm(MAX_SECONDS)
            started = time.monotonic()
            ended = _ended(read, path)
            signal.alarm(0)
            if ended not in ("read", "refused"):
                ended = f"{kind} {case} of seed {seed}: {ended}"
            print(json.dumps({"case": case, "ended": ended, "s": time.monotonic() - started, "mib": _peak_mib()}), flush=True)
            if _peak_mib() > MAX_MIB:
                sys.exit(f"{_peak_mib()} MiB")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
