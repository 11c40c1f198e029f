"""What the charts are called, and how they are read."""

from .marks import Ranking

READING = {
    "combined": (
        "Combined score of every head",
        "A cell is a head; brighter means that the task drives it more, and a white dot marks the top k.",
    ),
    "signal_maps": (
        "The signals",
        "Means over the samples, and below them the same normalised; brighter or more orange is higher. Higher means that the "
        "task drives the head more, or where the weight is negative, less. White dots are the top k.",
    ),
    "entropy_and_task": (
        "Entropy against task mass",
        "A point is a head; to the left its attention is focused, further up more of it goes to the task's tokens, and "
        "brighter points rest on the first token (a sink). Rings mark the top k.",
    ),
    "layer_profiles": (
        "Signals by layer",
        "The line is the mean of a layer's heads, the band their range; dots are the top k heads, which the last chart counts.",
    ),
    "top_heads": (
        "What the top heads' scores are made of",
        "A bar is a head; its parts add up to the combined score, those to the left of 0 taking away from it. A part is "
        "{part}.",
    ),
}
_PARTS = {  # by fusion
    "rank": "the head's rank by a signal times the signal's weight",
    "rrf": "a signal's weight divided by 60 plus the head's place by it",
    "sum": "the head's normalised value of a signal times the signal's weight",
}


def reading(name: str, live: Ranking | None) -> tuple[str, str]:
    """A chart's title, and how to read it."""
    title, text = READING[name]
    return title, text.format(part=_PARTS[live.fusion] if live else "")
