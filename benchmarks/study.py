"""The study of docs/study.md: whether models need the heads that rankings put first, on two models and three files of rows.

    python benchmarks/study.py arc=arc_3k.jsonl commonsense=commonsense_17k.json --work study

Each part is captured, scored and validated by the tool itself, in a folder of its own under --work; a part that was broken off
goes on where it was. Then the tables and charts of docs/study.md are made anew, between its marks; what is said about them
stands outside of the marks, and is written by hand. `--only NAME` runs one part and leaves the page as it is, so that several
can run beside each other (with OMP_NUM_THREADS=1).
"""

import argparse
import json
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import recall_model
from measuring import machine

import headscore

DOCS = Path(headscore.__file__).parent / "docs"
SIGNALS = ("combined", "out", "ent", "-ent", "task")
RECALL = "recall"
SHOWN = {"kl": "KL", "nll": "NLL of the answer", "acc": "accuracy"}


@dataclass(frozen=True)
class Part:
    """One model with one file of rows: its name, the options of the capture, and those of the validation."""

    name: str
    capture: dict[str, Any]
    validate: dict[str, Any]


def parts(args: argparse.Namespace) -> list[Part]:
    common = {"signal": SIGNALS[1:], "draws": args.draws, "single": True, "gate_gradient": True, "fit_weights": True}
    made = []
    for given in args.data:
        name, path = given.split("=", 1)
        capture = {"data": path, "max_samples": args.captured}
        made.append(Part(name, capture, {**common, "max_samples": args.samples, "k": args.k}))
    model, data = args.work / "recall-model", args.work / "recall.jsonl"
    if args.only not in (None, RECALL):
        return made
    if not (model / "tokenizer.json").exists():
        recall_model.train(model, data, args.steps, 1000)
    template = args.work / "recall.txt"
    template.write_text(recall_model.TEMPLATE)
    capture = {"data": str(data), "model": str(model), "max_samples": args.captured, "template": str(template)}
    return [*made, Part(RECALL, capture, {**common, "max_samples": 200, "k": args.k, "answer": "text"})]


def run(part: Part, work: Path) -> headscore.Validation:
    """Capture, score and validate one part; what is there already is not made again."""
    folder, started = work / part.name, time.monotonic()
    cache, results, out = folder / "cache", folder / "results", folder / "validation"
    if not results.exists():
        headscore.capture(cache, **part.capture)
        headscore.score(cache, out=results)
    found = headscore.validate(results, out, report=True, progress=_told(part.name), **part.validate)
    (folder / "seconds.txt").open("a").write(f"{time.monotonic() - started:.0f}\n")
    return found


def _told(name: str) -> Any:
    last = [time.monotonic()]

    def progress(done: int, of: int) -> None:
        if time.monotonic() - last[0] > 60:
            last[0] = time.monotonic()
            print(f"{name}: {done} of {of} rows of sets", flush=True)

    return progress


# --------------------------------------------------------------------------------------------------------------- the page


def tables(found: headscore.Validation) -> str:
    """All of one part, as Markdown."""
    facts = found.measured.facts
    floors = ", ".join(f"{name} {floor:.1g}" for name, floor in facts["noise_floor"].items())
    intact = _intact(found.table)
    lines = [f"{facts['rows']} rows, {facts['units']} heads, {facts['draws']} draws; {intact}; noise floor: {floors}.", ""]
    metrics = [name for name in SHOWN if name in found.table["metric"]]
    lines += _markdown(["heads taken out", *(text for name in metrics for text in (SHOWN[name], "random heads", "p"))], [])
    for signal in SIGNALS:
        for k in facts["k"]:
            of = {line["metric"]: line for line in found.table.filter(signal=signal, k=k).to_dicts()}
            cells = [f"first {k} by `{signal}`"]
            for name in metrics:
                cells += _cells(of[name], "+" if name != "kl" else "")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_agreement(found), "", *_fit(found)])


def _intact(table: pl.DataFrame) -> str:
    told = []
    for line in table.unique("metric", maintain_order=True, keep="first").to_dicts():
        if line["metric"] == "nll":
            told.append(f"NLL of the answer {line['intact']:.2f}")
        if line["metric"] == "acc":
            above = "above" if line["above_chance"] else "**not above**"
            told.append(f"accuracy {line['intact']:.2f}, {above} chance ({line['chance']:.2f})")
    return "the intact model: " + ", ".join(told)


def _cells(line: dict[str, Any], sign: str) -> list[str]:
    return [
        f"{line['top']:{sign}.2f}",
        f"{line['draws']:{sign}.2f} ({line['draws_min']:{sign}.2f} to {line['draws_max']:{sign}.2f})",
        f"{line['p']:.3f}",
    ]


def _agreement(found: headscore.Validation) -> list[str]:
    assert found.agreement is not None
    wide = found.agreement.pivot("effect", index="signal", values="spearman", maintain_order=True)
    lines = [[f"`{signal}`", *("–" if rho is None else f"{rho:+.2f}" for rho in values)] for signal, *values in wide.rows()]
    return _markdown(["Spearman's ρ of", *(f"with `{name}`" for name in wide.columns[1:])], lines)


def _fit(found: headscore.Validation) -> list[str]:
    fit = found.fit
    assert fit is not None
    weights = ", ".join(f"{name} {weight:+g}" for name, weight in fit.weights.items())
    shown = ["none" if each is None else f"{each:+.2f}" for each in (fit.held_out, fit.default_held_out, fit.between_halves)]
    return [
        f"Weights picked on {fit.rows[0]} rows by agreement with the `{fit.effect}` of single heads: {weights}. On the other "
        f"{fit.rows[1]} rows: ρ {shown[0]}; the default's weights {shown[1]}; one half of the rows with the other {shown[2]}."
    ]


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines)]


def write_page(found: dict[str, headscore.Validation], work: Path) -> None:
    """Put each part's tables between its marks in docs/study.md, and its curves beside it."""
    page = DOCS / "study.md"
    text = page.read_text()
    (DOCS / "study").mkdir(exist_ok=True)
    for name, each in found.items():
        shutil.copy(work / name / "validation" / "charts" / "curves.svg", DOCS / "study" / f"{name}-curves.svg")
        made = f"<!-- {name} -->\n\n{tables(each)}\n\n<!-- end -->"
        text, count = re.subn(rf"<!-- {name} -->.*?<!-- end -->", lambda _, made=made: made, text, flags=re.DOTALL)
        if not count:
            raise SystemExit(f"{page}: has no place for {name}")
    page.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", help="NAME=FILE of rows for the default model")
    parser.add_argument("--work", type=Path, required=True, help="folder of all that is made; give it again to go on")
    parser.add_argument("--captured", type=int, default=256, help="rows that the rankings are made of")
    parser.add_argument("--samples", type=int, default=48, help="other rows that they are validated on")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--steps", type=int, default=1500, help="of the training of the second model")
    parser.add_argument("--only", help="the part to run")
    parser.add_argument("--k", nargs="+", default=["5%", "10%", "20%"])
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    found = {part.name: run(part, args.work) for part in parts(args) if args.only in (None, part.name)}
    if args.only:
        return
    write_page(found, args.work)
    print(json.dumps({"machine": machine("cpu"), "rows": {name: each.measured.facts["rows"] for name, each in found.items()}}))


if __name__ == "__main__":
    main()
