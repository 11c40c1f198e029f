"""Times a capture against the plain forward pass of the same model over the same prompts.

The quantity: seconds for all prompts, everything that a capture does included but loading the model and the self-check, both
of which happen once: reading and tokenising the data file (with --data), the model, the reductions, the copies to the host,
and the shards on disk. The other ways are given tokens that are ready and keep nothing on disk.

    plain     the causal language model with SDPA, sorted batches padded on the right
    base      the same without its LM head
    eager     eager attention with output_attentions, unsorted batches of 4: what one variation costs without a cache
    ours      headscore, each prompt run whole
    shared    headscore, shared prefixes run once (the default)
    ours_all, shared_all    the same with --queries all_tokens
    unchecked shared, without spot checks; the other ways of headscore are also given as ratios to it

The ceiling of `ours` is `base`: whatever it takes beyond that is the price of recording. `shared` may be below it by the share
of tokens that are saved. "run" is how many tokens go through the model for each token of the prompts: above 1 by what is
padding and spot checks, below it by what is shared. Every round has every way once, in an order of its own; medians of the
rounds are given, with the medians of each round's ratios to `plain`, `base` and `unchecked`. Memory is the peak over what the
process (on CUDA: the device) held before the way began; page faults are the pages that the system had to hand out to it. A
large batch's temporaries are handed out anew in each layer or not, as the process's heap happens to lie, which on a CPU can be
a tenth of a pass: so take several processes.

Examples:
    grep "choose the correct answer" commonsense.jsonl > arc.jsonl   (ARC, as LLM-Adapters words it)
    python benchmarks/bench_capture.py --data arc.jsonl --samples 64
    python benchmarks/bench_capture.py --lengths 100 512 1024 2048 --samples 8
    python benchmarks/bench_capture.py --random-weights llama-3.2-1b --device cuda --dtype bf16 --lengths 128 --samples 2048

Before and after a change: once with PYTHONPATH at the parent folder of each checkout, in turn; with --ways plain shared a
machine that drifts shows in `plain`.

The last line is JSON.
"""

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Spent, machine, timed
from shapes import PRESETS
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from headscore.capture.checking.check_result import CheckedModel
from headscore.capture.checking.selfcheck import checked_model
from headscore.capture.inputs.tokenising import EncodedShard, Marker, ShardSamples, SkipLimit, encode_shards, read_prompts
from headscore.capture.model import models
from headscore.capture.model.device import computing_on
from headscore.capture.model.sources import resolve
from headscore.capture.writing.shards import ShardMaker
from headscore.capture.writing.written_metadata import data_metadata, with_model
from headscore.data.cache.folder import Cache, write_metadata
from headscore.data.cache.metadata import Metadata
from headscore.data.options.settings import CaptureSettings
from headscore.data.prompts.tokens import Sample

OURS = {"ours": "last_token", "shared": "last_token", "ours_all": "all_tokens", "shared_all": "all_tokens"}  # --queries
OURS["unchecked"] = "last_token"
SHARED = ("shared", "shared_all", "unchecked")
WAYS = ("plain", "base", "eager", *OURS)
EAGER_BATCH = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="as for headscore capture")
    parser.add_argument(
        "--random-weights", metavar="CONFIG", help=f"{', '.join(PRESETS)}, or a config.json: no model is loaded"
    )
    parser.add_argument("--data", help="data file of real prompts; else random tokens of --lengths")
    parser.add_argument("--template", help="prompt template of --data")
    parser.add_argument("--max-length", type=int, default=512, help="longest prompt taken from --data")
    parser.add_argument("--lengths", type=int, nargs="+", default=[100, 512, 1024, 2048])
    parser.add_argument("--samples", type=int, default=64, help="prompts of a measurement")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--batch-size", type=int, default=8, help="of plain and base")
    parser.add_argument("--our-batch-size", type=int, help="of headscore; its own choice if not given")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "fp16", "bf16"])
    arguments = parser.parse_args()
    causal = load(arguments)
    results = {}
    for name, length in {"data": 0}.items() if arguments.data else {str(n): n for n in arguments.lengths}.items():
        results[name] = measure(causal, arguments, length)
    print(json.dumps({"machine": machine(arguments.device), "dtype": arguments.dtype, "results": results}))


def load(arguments: argparse.Namespace) -> PreTrainedModel:
    """The whole causal language model, with SDPA."""
    dtype, device = models.DTYPES[arguments.dtype], torch.device(arguments.device)
    if not arguments.random_weights:
        location = resolve(arguments.model).location
        return AutoModelForCausalLM.from_pretrained(location, dtype=dtype, attn_implementation="sdpa").eval().to(device)
    preset = PRESETS.get(arguments.random_weights) or json.loads(Path(arguments.random_weights).read_text())
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**preset), dtype=dtype, attn_implementation="sdpa")
    return model.eval().to(device)


class Prompts:
    """The prompts of a measurement, `ids`, and how a capture makes shards of them."""

    def __init__(self, causal: PreTrainedModel, arguments: argparse.Namespace, length: int):
        self._arguments, self._length, self._base = arguments, length, causal.get_decoder()
        self._source = resolve(arguments.model)
        self._tokenizer = models.load_tokenizer(self._source)
        shards, marker = self._shards(self._settings("last_token", True))
        samples = [prompt for shard in shards for prompt in shard.prompts]
        self.ids = [prompt.ids for prompt in samples]
        self._checked: dict[str, CheckedModel] = {}
        self._metadata: dict[str, Metadata] = {}
        for queries in {OURS[way] for way in arguments.ways if way in OURS}:
            settings = self._settings(queries, True)
            with computing_on(self._base.device):
                checked = self._checked[queries] = checked_model(self._base, samples, arguments.dtype, settings)
            first = marker(shards[0]).samples
            metadata = data_metadata(settings, arguments.dtype, self._tokenizer, self._read, len(shards), first)
            self._metadata[queries] = with_model(metadata, self._source, self._base, checked.check)

    def capture(self, queries: str, share: bool, spot_checks: bool) -> None:
        """All shards, made in a folder of their own; a data file is read and tokenised each time, as it is in a capture."""
        settings = self._settings(queries, share, spot_checks)
        shards, marker = self._shards(settings)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "shards").mkdir()
            cache = Cache(Path(folder), self._metadata[queries], (), len(shards))
            write_metadata(cache.path, cache.metadata, keep_existing=False)
            limit, checked = SkipLimit(settings, self._arguments.samples, 0), self._checked[queries]
            checked = replace(checked, check=replace(checked.check, shared_prefixes=share))
            with computing_on(self._base.device):
                ShardMaker(cache, dict(enumerate(shards)), marker, checked, settings, limit).run(None)

    def _settings(self, queries: str, share: bool, spot_checks: bool = True) -> CaptureSettings:
        names = ("data", "template", "max_length") if self._arguments.data else ()
        return CaptureSettings(
            model=self._arguments.model,
            max_samples=self._arguments.samples,
            seed=self._arguments.seed,
            queries=queries,
            share_prefixes=share,
            spot_checks=spot_checks,
            batch_size=self._arguments.our_batch_size,
            batch_tokens=10**9 if self._arguments.our_batch_size else None,
            **{name: getattr(self._arguments, name) for name in names},
        )

    def _shards(self, settings: CaptureSettings) -> tuple[list[EncodedShard], Callable[[EncodedShard], ShardSamples]]:
        if self._arguments.data:
            self._read = read_prompts(settings)
            shards = encode_shards(self._read, self._tokenizer, settings)
            return shards, Marker(self._tokenizer, self._read.maker.span_names)
        self._read = read_prompts(CaptureSettings(max_samples=1))  # something for the metadata
        generator = np.random.default_rng(self._arguments.seed)
        vocabulary = self._base.config.get_text_config().vocab_size
        prompts = generator.integers(0, vocabulary, (self._arguments.samples, self._length), np.int32)
        samples = [Sample(row, ids, np.ones(len(ids), np.uint8)) for row, ids in enumerate(prompts)]
        size = settings.shard_size
        shards = [EncodedShard(samples[i : i + size], []) for i in range(0, len(samples), size)]
        return shards, lambda shard: ShardSamples(shard.prompts, [])


def measure(causal: PreTrainedModel, arguments: argparse.Namespace, length: int) -> dict[str, Any]:
    """Seconds and peak memory of every way, interleaved."""
    prompts = Prompts(causal, arguments, length)
    base = causal.get_decoder()
    by_length = sorted(prompts.ids, key=len, reverse=True)

    def forward(model: PreTrainedModel, ids: list[Any], size: int, **options: Any) -> None:
        for start in range(0, len(ids), size):
            chosen = ids[start : start + size]
            batch = torch.zeros((len(chosen), max(map(len, chosen))), dtype=torch.long)
            real = torch.zeros_like(batch)
            for row, tokens in enumerate(chosen):
                batch[row, : len(tokens)] = torch.from_numpy(tokens)
                real[row, : len(tokens)] = 1
            mask = None if bool(real.all()) else real.to(model.device)
            model(input_ids=batch.to(model.device), attention_mask=mask, use_cache=False, **options)

    def eager() -> None:
        causal.set_attn_implementation("eager")
        try:
            forward(causal, prompts.ids, EAGER_BATCH, output_attentions=True)
        finally:
            causal.set_attn_implementation("sdpa")

    ways: dict[str, Callable[[], None]] = {
        "plain": lambda: forward(causal, by_length, arguments.batch_size),
        "base": lambda: forward(base, by_length, arguments.batch_size),
        "eager": eager,
        **{way: partial(prompts.capture, queries, way in SHARED, way != "unchecked") for way, queries in OURS.items()},
    }
    ways = {name: way for name, way in ways.items() if name in arguments.ways}
    spent: dict[str, list[Spent]] = {name: [] for name in ways}
    run = dict.fromkeys(ways, 0)
    hook = base.get_input_embeddings().register_forward_pre_hook(
        lambda _, given: run.update({name: run[name] + given[0].numel()})
    )
    names, order = list(ways), random.Random(arguments.seed)
    for round_ in range(arguments.rounds + 1):  # the first warms up
        order.shuffle(names)  # so that none always follows eager, which leaves the memory in disorder
        for name in names:
            run[name] = 0
            this = timed(ways[name], causal.device)
            if round_:
                spent[name].append(this)
    hook.remove()
    return report(prompts, arguments, length, spent, run)


def report(
    prompts: Prompts,
    arguments: argparse.Namespace,
    length: int,
    spent: dict[str, list[Spent]],
    run: dict[str, int],
) -> dict[str, Any]:
    """Print a table and give its figures."""
    tokens = sum(map(len, prompts.ids))
    print(f"\n{arguments.data or f'random tokens, {length} a prompt'}: {len(prompts.ids)} prompts, {tokens} tokens")
    results = {}
    for name, rounds in spent.items():
        line = {
            "seconds": statistics.median(each.seconds for each in rounds),
            "peak_mib": statistics.median(each.peak_mib for each in rounds),
            "page_faults": statistics.median(each.page_faults for each in rounds),
            "run": run[name] / tokens,
        }
        shown = f"{name:12} {line['seconds']:8.2f} s  {tokens / line['seconds']:9.0f} tokens/s  {line['peak_mib']:7.0f} MiB"
        shown += f"  {line['page_faults']:9.0f} page faults  {line['run']:.2f} run"
        for yardstick in ("plain", "base", "unchecked"):
            if yardstick in spent:  # the median of the ratios of each round, as a machine's speed drifts
                pairs = zip(rounds, spent[yardstick], strict=True)
                line[f"to_{yardstick}"] = statistics.median(a.seconds / b.seconds for a, b in pairs)
                shown += f"  {line[f'to_{yardstick}']:.2f} of {yardstick}"
        print(shown, flush=True)
        results[name] = {key: round(value, 4) for key, value in line.items()}
    return {"prompts": len(prompts.ids), "tokens": tokens, **results}


if __name__ == "__main__":
    main()
