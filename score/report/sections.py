"""The parts of a report that are text: what was captured, the most attended tokens, the skipped rows. All of it is escaped."""

import html
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ... import __version__
from ...data.errors import printable
from ...data.metadata import model_name
from ...data.settings import Unit
from .columns import UNITS

if TYPE_CHECKING:
    from ..scores import Scores

MOST_SKIPPED_SHOWN = 200
_SHADES = 10
_UNDERLINES = 4


def escaped(text: Any) -> str:
    """Text from data as HTML that shows it; what would steer the text, such as a change of its direction, is spelled out."""
    return html.escape("\n".join(printable(line) for line in str(text).split("\n")))


def captured(scores: "Scores", tokens: int) -> str:
    """What was captured and how it was scored, as a list of names and values, with the templates to unfold."""
    metadata, settings = scores.metadata, scores.settings
    model, data, dims = metadata["model"], metadata["data"], metadata["dims"]
    spans = ", ".join(settings.task_span)
    facts = {
        "model": f"{model_name(model)}: {dims['layers']} layers of {dims['heads']} heads",
        "data": f"{data.get('path', '')} ({data.get('style', 'unknown')} style, {data.get('rows', 'unknown')} rows)",
        "samples": f"{scores.samples} with {tokens} tokens in all",
        "template": ", ".join(template["name"] for template in metadata["templates"]) or "none",
        "capture": _pairs(metadata["settings"]),
        "signals": f"{settings.score_query_mode}, out is the norm of {settings.head_output}, task is the mass on {spans}",
        "score": _formula(scores),
        "versions": _pairs(
            {"headscore": f"{__version__} (scores)"} | {f"{k} (capture)": v for k, v in metadata["versions"].items()}
        ),
    }
    lines = "".join(f"<dt>{escaped(name)}</dt><dd>{escaped(value)}</dd>" for name, value in facts.items())
    partial = f'<p class="warning">PARTIAL: shards {escaped(scores.missing_shards)} of this capture are missing.</p>'
    templates = "".join(
        f"<details><summary>Template {escaped(template['name'])}</summary><pre>{escaped(template['text'])}</pre></details>"
        for template in metadata["templates"]
    )
    return f"{partial if scores.missing_shards else ''}<dl>{lines}</dl>{templates}"


_FUSED = {"rank": "rank by {name}", "rrf": "1/(60 + place by {name})", "sum": "{name}, normalised"}


def _formula(scores: "Scores") -> str:
    """What the combined score is made of, with the definitions of the user's own signals."""
    settings = scores.settings
    terms = " + ".join(f"{weight:g} × ({_FUSED[settings.fusion].format(name=name)})" for name, weight in scores.weights.items())
    group = {"head": "of heads", "kv_head": "of groups of heads that share a key-value head"}[settings.by]
    given = [(kind, name, text) for kind in ("measure", "signal") for name, text in getattr(settings, kind).items()]
    own = "".join(f"; {kind} {name} = {' '.join(str(text).split())}" for kind, name, text in given if text is not None)
    return f"{terms}, {group} within the {settings.within}; {settings.norm_mode}{own}"


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def tokens_section(lines: Sequence[dict[str, Any]], unit: Unit = "head") -> str:
    """The prompts' tokens for some heads, the more attended the stronger their shade, spans underlined.

    Args:
        lines: of `attended`; where there are none a sentence is shown instead.
        unit: whether they are about heads or groups of them.
    """
    title = "<h2>Most attended tokens</h2>"
    if not lines:
        return f"{title}<p>This cache keeps no texts of tokens; one that is captured anew does.</p>"
    names = sorted({name for line in lines for name in line["spans"]} - {"template"})
    underline = {name: f"u{place % _UNDERLINES}" for place, name in enumerate(names)}
    body = ""
    for (layer, head), of_head in itertools.groupby(sorted(lines, key=_by_head), key=_by_head):
        body += f"<h3>L{layer}{UNITS[unit]}{head}</h3>"
        for row, tokens in itertools.groupby(of_head, key=lambda line: line["row"]):
            body += f'<div class="prompt"><span class="faint">row {row} </span>{_tokens(list(tokens), underline)}</div>'
    key = "".join(f'<i class="{kind}">{escaped(name)}</i>' for name, kind in underline.items())
    shades = "".join(f".w{n}{{background:rgba(var(--weight),{n / _SHADES * 0.9:.2f})}}" for n in range(1, _SHADES + 1))
    return (
        f"{title}<style>{shades}</style><p>The stronger a token's shade, the more attention the head gives it from the last "
        f'token (as the square root of its share); the spans are underlined.</p><p class="key">{key}</p>{body}'
    )


def _by_head(line: dict[str, Any]) -> tuple[int, int]:
    return line["layer"], line["head"]


def _tokens(tokens: list[dict[str, Any]], underline: dict[str, str]) -> str:
    text = ""
    for token in tokens:
        shade = round(min(1.0, max(0.0, token["weight"])) ** 0.5 * _SHADES)
        kinds = [f"w{shade}"] * (shade > 0) + [underline[name] for name in token["spans"] if name in underline][:1]
        shown = escaped(token["token"])
        text += f'<i class="{" ".join(kinds)}" title="{token["weight"]:.3f}">{shown}</i>' if kinds else shown
    return text


def skipped_section(skipped: Sequence[dict[str, Any]]) -> str:
    """The rows that were not captured, with the reasons."""
    if not skipped:
        return "<h2>Skipped rows</h2><p>None: every row that was drawn is in the scores.</p>"
    lines = "".join(f"<li>row {entry['row']}: {escaped(entry['reason'])}</li>" for entry in skipped[:MOST_SKIPPED_SHOWN])
    more = len(skipped) - MOST_SKIPPED_SHOWN
    rest = f"<p>… and {more} more in the cache's skipped.jsonl.</p>" if more > 0 else ""
    return f'<h2>Skipped rows</h2><p>{len(skipped)} rows are not in the scores.</p><ul class="skipped">{lines}</ul>{rest}'
