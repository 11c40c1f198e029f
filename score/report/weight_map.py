"""A map of how far settings agree with a reference, as an Altair chart."""

import altair as alt
import polars as pl
from altair.utils import schemapi

from ...data.errors import InputError
from .columns import finite

VALUES = {"spearman": "Spearman's ρ with the reference", "shared": "heads shared with the reference's top"}
_WEIGHT = "weight_"


def sweep_map(settings: pl.DataFrame, value: str = "spearman", signals: tuple[str, str] | None = None) -> alt.Chart:
    """The agreement of each setting of a sweep with its reference, over the weights of two signals.

    Args:
        settings: `Sweep.settings`.
        value: `spearman` or `shared`.
        signals: whose weights are across and up; the first two that have several if not given. Where several settings have the
            same two weights, the best of them is shown.

    Raises InputError where the frame is not of a sweep, or does not have two weights that change.
    """
    weights = [name.removeprefix(_WEIGHT) for name in settings.columns if name.startswith(_WEIGHT)]
    varied = [name for name in weights if settings[f"{_WEIGHT}{name}"].n_unique() > 1]
    if value not in VALUES or value not in settings.columns:
        raise InputError(f"sweep_map: value={value!r:.80} is not one of {', '.join(VALUES)}, or the frame is not of a sweep")
    across, up = signals or (*varied[:2], *["", ""][len(varied[:2]) :])
    if across not in weights or up not in weights or across == up:
        raise InputError(f"sweep_map: needs the weights of two signals; those with several are {', '.join(varied) or 'none'}")
    x, y = f"{_WEIGHT}{across}", f"{_WEIGHT}{up}"
    best = settings.group_by(x, y).agg(pl.col(value).max()).sort(x, y)
    steps = [best[name].n_unique() for name in (x, y)]
    with schemapi.debug_mode(False):  # every line would be validated by itself
        data = alt.InlineData(values=finite(best).to_dicts())
    scale = alt.Scale(scheme="blueorange", domainMid=0) if value == "spearman" else alt.Scale(scheme="viridis")
    axis = alt.Axis(labelOverlap=True, labelAngle=0, format="~g")
    return (
        alt.Chart(data, width=max(120, min(420, 20 * steps[0])), height=max(80, min(420, 20 * steps[1])))
        .mark_rect()
        .encode(
            x=alt.X(f"{x}:O", title=f"weight of {across}", axis=axis),
            y=alt.Y(f"{y}:O", title=f"weight of {up}", axis=axis, sort="descending"),
            color=alt.Color(f"{value}:Q", title=VALUES[value], scale=scale, legend=alt.Legend(orient="top", titleLimit=0)),
            tooltip=[alt.Tooltip(f"{name}:Q", format=".4~g") for name in (x, y, value)],
        )
    )
