"""Times `headscore validate` against plain forward passes of the same model over the same rows.

    plain       the causal language model, all logits, sorted batches padded on the right
    last        the same with the logits of the last position alone
    validate    one set of heads taken out, with all that is read off

Every round has every way once, in an order of its own; medians of the rounds are given, with the median of each round's ratios
to `plain`. The sets are draws of 10 % of the heads. Loading the model and the self-check, which happen once, are not counted.

    headscore run --no-report --out results
    python benchmarks/bench_validate.py results --data arc_3k.jsonl --samples 24

The last line is JSON.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import machine

from headscore.capture.model.device import profile_of
from headscore.capture.recording.batches import batch_counts
from headscore.capture.validating import Opened, opened_for
from headscore.data.options.settings import ValidateSettings
from headscore.score.head_sets import counts_of, head_sets
from headscore.score.results import Results, read_results


def plain(opened: Opened, batch_tokens: int, last_only: bool) -> Callable[[], None]:
    """All rows through the model, in batches of the size that a validation has."""
    model = opened.evaluator.model
    sequences = sorted((ids for q in opened.questions for ids in q.sequences), key=len, reverse=True)
    batches, left = [], sequences
    for count in batch_counts([len(ids) for ids in sequences], batch_tokens, None, profile_of(model.device).batch_overhead):
        part, left = left[:count], left[count:]
        ids = torch.zeros((count, len(part[0])), dtype=torch.long)
        for place, row in enumerate(part):
            ids[place, : len(row)] = torch.from_numpy(row)
        batches.append(ids.to(model.device))
    options = {"logits_to_keep": 1} if last_only else {}

    def run() -> None:
        with torch.inference_mode():
            for ids in batches:
                model(input_ids=ids, use_cache=False, **options)
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder of results of headscore score")
    parser.add_argument("--data", help="data file; that of the results if not given")
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-tokens", type=int, default=768)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    ranking: Results = read_results(args.results)
    chosen = {name: getattr(args, name) for name in ("data", "batch_tokens", "device", "dtype")}
    opened = opened_for(ranking.record, ValidateSettings(max_samples=args.samples, **chosen))
    sets = head_sets(ranking.order(), "combined", counts_of(["10%"], len(ranking.heads)), args.rounds, 0)
    draws = iter([each.units for each in sets if each.set == "draw"])
    opened.evaluator.intact()
    ways: dict[str, Callable[[], object]] = {
        "plain": plain(opened, args.batch_tokens, last_only=False),
        "last": plain(opened, args.batch_tokens, last_only=True),
        "validate": lambda: opened.evaluator.without([next(draws)]),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(args.rounds):
        for way in random.sample(list(ways), len(ways)):
            started = time.perf_counter()
            ways[way]()
            seconds[way].append(time.perf_counter() - started)
    ratios = {
        way: statistics.median(one / other for one, other in zip(times, seconds["plain"], strict=True))
        for way, times in seconds.items()
    }
    medians = {way: statistics.median(times) for way, times in seconds.items()}
    rows = len(opened.questions)
    for way, median in medians.items():
        print(f"{way:10} {median:8.2f} s for {rows} rows   {ratios[way]:.3f} of plain")
    found = {"rows": rows, "seconds": medians, "of_plain": ratios, "sets_per_second": 1 / medians["validate"]}
    print(json.dumps({"machine": machine(str(opened.evaluator.model.device)), "results": found}))


if __name__ == "__main__":
    main()
