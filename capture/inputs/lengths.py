"""Which lengths may share a pass in a model, and which lengths are worth a check.

A causal model gives a token the same values whatever comes after it. Two kinds of position encoding break that: LongRoPE has
one set of frequencies up to its original context and another one beyond, and dynamic NTK has other frequencies for every
length beyond it. Both look at the longest prompt of a batch, and at the whole of a prompt whose prefix is run apart. Models
that choose some keys for each token may choose others among keys of the same score where there is padding, too.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# RoPE whose frequencies are the same in every pass.
_STATIC_ROPE = ("default", "linear", "yarn", "llama3", "proportional", "mrope", "none")
_LIMIT_NAMES = re.compile(r"window|chunk|block|top_?k|position|length|context|ctx|seq")
_CHOICE_NAMES = re.compile(r"(index|block|sparse|moba)\w*top_?k|top_?k_?(index|block|token|key)|keep_window")  # how many keys


@dataclass(frozen=True)
class LengthRules:
    """Which prompts may be run in one pass.

    Args:
        switches: rising numbers of tokens. A pass of more tokens is computed in another way than one of at most that number.
        alone_beyond: passes of more tokens than this are computed in a way of their own for every length. 0: all are;
            None: none are.
        limits: rising numbers of tokens beyond which something begins (a window, a chunk, a sparse choice of keys, a switch),
            so that a check of shorter prompts says nothing about longer ones.
    """

    switches: tuple[int, ...] = ()
    alone_beyond: int | None = None
    limits: tuple[int, ...] = ()

    def way(self, tokens: int) -> int:
        """A number that is the same for two lengths only where passes of these lengths are computed in the same way."""
        if self.alone_beyond is not None and tokens > self.alone_beyond:
            return len(self.switches) + tokens
        return bisect_left(self.switches, tokens)


NO_RULES = LengthRules()
ALL_APART = LengthRules(alone_beyond=0)


def length_rules(config: Any) -> LengthRules:
    """The rules that a model's configuration (a transformers config, or what looks like one) implies.

    A kind of RoPE that is not known to be static counts as one that is different for every length.
    """
    text = config.get_text_config()
    values = text.to_dict()
    switches: set[int] = set()
    alone: set[int] = set()
    for rope in _ropes(values):
        kind = rope.get("rope_type", rope.get("type"))
        original = _original_length(rope, text)
        if "long_factor" in rope or kind in ("longrope", "su"):
            (switches if original else alone).add(original)  # where it switches may be left unsaid
        elif kind not in _STATIC_ROPE:
            alone.add(min(original, _original_length({}, text)))
    alone |= {value for value in _values(values, _CHOICE_NAMES) if value > 0}
    limits = {value for value in _values(values, _LIMIT_NAMES) if value > 1} | switches | alone
    return LengthRules(tuple(sorted(switches)), min(alone, default=None), tuple(sorted(limits - {0})))


def _ropes(values: Any) -> Iterator[dict[str, Any]]:
    """Every description of a RoPE in a configuration; some have one for each kind of layer."""
    if isinstance(values, dict):
        if "rope_type" in values or (isinstance(values.get("type"), str) and values.keys() & {"factor", "rope_theta", "base"}):
            yield values
        values = list(values.values())
    for value in values if isinstance(values, list | tuple) else ():
        yield from _ropes(value)


def _original_length(rope: dict[str, Any], config: Any) -> int:
    """The tokens up to which a RoPE is as it was first trained; 0 where the configuration does not say."""
    name = "original_max_position_embeddings"
    found = (rope.get(name), getattr(config, name, None), getattr(config, "max_position_embeddings", None))
    return next((int(value) for value in found if isinstance(value, int | float) and value), 0)


def _values(value: Any, names: re.Pattern[str], name: str = "") -> Iterator[int]:
    """Every whole number in a configuration under a name of a kind."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _values(inner, names, str(key).lower())
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _values(inner, names, name)
    elif type(value) is int and names.search(name):
        yield value
