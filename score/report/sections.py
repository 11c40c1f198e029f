"""The parts of a report that are text: what was found, tokens, what was captured, skipped rows. All of it is escaped."""

import base64
import html
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ... import __version__
from ...data.cache.metadata import SkippedRow, model_name
from ...data.errors import printable
from ...data.options.settings import Unit
from ...data.prompts.templates import ALWAYS_SPANS
from ..scores import Scores
from .columns import UNITS
from .texts import opening

MOST_SKIPPED_SHOWN = 200
_UNDERLINES = 4
_FOLDED = set(ALWAYS_SPANS)
_LONG_RUN = 8  # tokens


def escaped(text: Any) -> str:
    """Text from data as HTML that shows it; what would steer the text, such as a change of its direction, is spelled out."""
    return html.escape("\n".join(printable(line) for line in str(text).split("\n")))


def captured(scores: Scores, tokens: int) -> str:
    """What was captured and how it was scored, as a list of names and values, with the templates, to unfold."""
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
    templates = "".join(
        f"<details><summary>Template {escaped(template['name'])}</summary><pre>{escaped(template['text'])}</pre></details>"
        for template in metadata["templates"]
    )
    return f"<details><summary>What was captured, and how it was scored</summary><dl>{lines}</dl>{templates}</details>"


def lead(scores: Scores, missing: Sequence[str]) -> str:
    """What was found, how far to trust it, and what was not looked at."""
    warnings = [f"PARTIAL: shards {scores.missing_shards} of this capture are missing."] if scores.missing_shards else []
    if kind := scores.metadata["settings"].get("control"):
        warnings.append(f"CONTROL {kind}: these are control prompts; this is no ranking for the task.")
    warned = "".join(f'<p class="warning">{escaped(line)}</p>' for line in warnings)
    told = "".join(f"<li>{escaped(line)}</li>" for line in scores.told)
    also = [*missing, *([] if "p_top" in scores.heads.columns else ["how sure the order is (--bootstrap 1000)"])]
    left = f'<p class="faint">Not looked at here: {escaped(", ".join(also))}.</p>' if also else ""
    return f'{warned}<p class="lead">{escaped(opening(scores))}</p><ul class="told">{told}</ul>{left}'


_FUSED = {"rank": "rank by {name}", "rrf": "1/(60 + place by {name})", "sum": "{name}, normalised"}


def _formula(scores: Scores) -> str:
    """What the combined score is made of, with the definitions of the user's own signals."""
    settings = scores.settings
    terms = " + ".join(f"{weight:g} × ({_FUSED[settings.fusion].format(name=name)})" for name, weight in scores.weights.items())
    group = {"head": "of heads", "kv_head": "of groups of heads that share a key-value head"}[settings.by]
    given = [(kind, name, text) for kind in ("measure", "signal") for name, text in getattr(settings, kind).items()]
    own = "".join(f"; {kind} {name} = {' '.join(str(text).split())}" for kind, name, text in given if text is not None)
    return f"{terms}, {group} within the {settings.within}; {settings.norm_mode}{own}"


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def tokens_panel(lines: Sequence[dict[str, Any]], unit: Unit = "head") -> tuple[str, dict[str, str]]:
    """The prompts' tokens to unfold, which the page's script shades by what the picked head attends to, spans underlined.

    Runs of tokens that are of the template alone are folded.

    Args:
        lines: of `attended`; where there are none a sentence is shown instead.
        unit: whether they are about heads or groups of them.

    Returns the HTML, and by the names of heads the square root of each token's weight in 255ths, a byte each, as base64.
    """
    title = "<h2>Most attended tokens</h2>"
    if not lines:
        return f"{title}<p>This cache keeps no texts of tokens; one that is captured anew does.</p>", {}
    names = sorted({name for line in lines for name in line["spans"]} - {"template"})
    underline = {name: f"u{place % _UNDERLINES}" for place, name in enumerate(names)}
    shown, levels = (lines[0]["layer"], lines[0]["head"]), defaultdict[str, bytearray](bytearray)
    for line in lines:
        levels[f"L{line['layer']}{UNITS[unit]}{line['head']}"].append(round(min(1.0, max(0.0, line["weight"])) ** 0.5 * 255))
    body = ""
    for row, tokens in itertools.groupby((line for line in lines if _by_head(line) == shown), key=lambda line: line["row"]):
        body += f'<div class="prompt"><span class="faint">row {row} </span>{_tokens(list(tokens), underline)}</div>'
    key = ", ".join(f'<i class="{kind}">{escaped(name)}</i>' for name, kind in underline.items())
    reading = (
        "The stronger a token's shade, the more attention the head gives it from the last token (as the square root of its "
        f"share); spans are underlined: {key}. Click a head in any chart to see its own."
    )
    html = (
        f'{title}<details id="tokens"><summary>What <b id="tokens-of"></b> attends to in {len(set(map(_row, lines)))} prompts'
        f'</summary><p class="key">{reading}</p>{body}</details>'
    )
    return html, {name: base64.b64encode(of_head).decode() for name, of_head in levels.items()}


def _by_head(line: dict[str, Any]) -> tuple[int, int]:
    return line["layer"], line["head"]


def _row(line: dict[str, Any]) -> int:
    return int(line["row"])


def _tokens(tokens: list[dict[str, Any]], underline: dict[str, str]) -> str:
    text = ""
    for folded, group in itertools.groupby(tokens, key=lambda token: bool(token["spans"]) and set(token["spans"]) <= _FOLDED):
        run = list(group)
        inner = "".join(_token(token, underline) for token in run)
        if folded and len(run) >= _LONG_RUN:
            inner = f'<button class="run">⋯ {len(run)} of the template</button><span hidden>{inner}</span>'
        text += inner
    return text


def _token(token: dict[str, Any], underline: dict[str, str]) -> str:
    kind = next((underline[name] for name in token["spans"] if name in underline), "")
    return f"<i{f' class={kind}' if kind else ''}>{escaped(token['token'])}</i>"


def skipped_section(skipped: Sequence[SkippedRow]) -> str:
    """The rows that were not captured, with the reasons, to unfold."""
    if not skipped:
        return ""
    lines = "".join(f"<li>row {entry['row']}: {escaped(entry['reason'])}</li>" for entry in skipped[:MOST_SKIPPED_SHOWN])
    more = len(skipped) - MOST_SKIPPED_SHOWN
    rest = f"<p>… and {more} more in the cache's skipped.jsonl.</p>" if more > 0 else ""
    summary = f"<summary>rows that were skipped, and are not in the scores: {len(skipped)}</summary>"
    return f'<details>{summary}<ul class="skipped">{lines}</ul>{rest}</details>'
