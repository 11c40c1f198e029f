"""What the charts are called, how they are read, and the sentence that a report opens with."""

from ...data.text import verb
from ..scores import Scores, head_name, heads_or_groups
from .marks import Ranking

READING = {
    "combined": (
        "Combined score of every head",
        "A cell is a head; brighter means that the task drives it more. White dots are the top k, which the margin counts by "
        "layer; white lines separate the groups of heads that share a key-value head.",
    ),
    "top_heads": (
        "The top heads, signal by signal",
        "A line is a head, first to last by its combined score, which is the sum of {part}. Beside it stands each signal as it "
        "is: a head may be first by its score and last by a signal. Dashed lines are what uniform attention would give.{null}",
    ),
    "signal_maps": (
        "The signals",
        "Means over the samples, and beside them the same as ranks within the layer, as out grows from layer to layer. "
        "Brighter is higher, which means that the task drives the head more, or where the weight is negative, less.",
    ),
    "entropy_and_task": (
        "Entropy against task mass",
        "A point is a head; to the left its attention is focused, further up more of it goes to the task's tokens, and "
        "brighter points rest on the first token (a sink). Rings mark the top k.",
    ),
    "layer_profiles": (
        "Signals by layer",
        "The line is the mean of a layer's heads, the band their range; dots are the top k heads.",
    ),
}
_PARTS = {  # by fusion
    "rank": "its ranks by the signals, each times the signal's weight",
    "rrf": "the signals' weights, each divided by 60 plus the head's place by it",
    "sum": "its normalised values of the signals, each times the signal's weight",
}
_NULL = " Bands are where random ranks would have the best and the k-th score."
_NAMED = 3  # heads in the first sentence
_DOUBTS = {  # by the name of a check: what speaks against the ranking, of `{n}` of the top `{k}` where that is counted
    "disagreement": "weighted signals point at different heads",
    "below_uniform": "{n} of the top {k} {give} the task less than uniform attention would",
    "length": "{n} {follow} the length of the task's text",
    "ties": "{n} heads tie at the cut",
    "first_token": "{n} {rest} on the first token",
    "samples": "other samples would change the top",
}
_VERBS = ("give", "follow", "rest")
_SHOWN_DOUBTS = 2


def reading(name: str, live: Ranking | None) -> tuple[str, str]:
    """A chart's title, and how to read it."""
    title, text = READING[name]
    null = _NULL if live and live.null else ""
    return title, text.format(part=_PARTS[live.fusion] if live else "", null=null)


def opening(scores: Scores) -> str:
    """What was found and how far to trust it, in one sentence, from the scores' null and checks."""
    top = scores.top(min(_NAMED, len(scores.heads))).to_dicts()
    *first, last = [head_name(line, scores.unit) for line in top]
    named = f"{', '.join(first)} and {last}" if first else last
    units = heads_or_groups(scores.unit)
    found = f"Of {len(scores.heads)} {units}, {named} come first in {scores.samples:,} samples"
    doubts = [
        _DOUBTS[check.name].format(n=f"{check.number:g}", k=scores.top_k, **{word: verb(word, check.number) for word in _VERBS})
        for check in scores.checks
    ]
    verdict = scores.null.verdict if scores.null else ""
    if verdict in ("less", "no more"):
        doubts.insert(0, f"its signals agree {'less' if verdict == 'less' else 'no more'} than chance would make them")
    if not doubts:
        agree = "its signals agree more than chance would make them, and " if verdict else ""
        return f"{found}: {agree}none of the checks speaks against it, but whether the model needs them is another question."
    more = len(doubts) - _SHOWN_DOUBTS
    shown = [*doubts[:_SHOWN_DOUBTS], *([f"{more} more below"] if more > 0 else [])]
    told = f"{', '.join(shown[:-1])}, and {shown[-1]}" if len(shown) > 1 else shown[0]
    much = "as a list of candidates, not as a finding" if verdict in ("less", "no more") else "with care"
    return f"{found}; take this {much}: {told}."
