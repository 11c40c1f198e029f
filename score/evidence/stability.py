"""How many samples a ranking needs, by the tops of disjoint parts of a cache: `headscore stability`."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ... import __version__
from ...data.cache.folder import Cache, open_cache
from ...data.errors import InputError
from ...data.files.whole_file import given_path
from ...data.options.evidence_settings import StabilitySettings
from ...data.options.places import written_place
from ...data.options.settings import RECORD_KEY, ScoreSettings, pick
from ...data.options.signatures import library_call
from ..cache_means import cache_means
from ..frames import heads_frame
from ..kept import open_store
from ..outputs import CONFIG_FILE, LOG_FILE, csv, options_config, results_folder
from ..recipe import choose_recipe
from ..scores import Scores, heads_or_groups
from .files import require_free, write_analysis
from .overlap import chance_overlap, nogueira
from .weighted_means import ranked_replicates, weighted_means

RESULT_FILES: tuple[str, ...] = ("stability.txt", "stability.csv")
SCHEMA = {
    "samples": pl.Int64,
    "k": pl.Int64,
    "groups": pl.Int64,
    "pairs": pl.Int64,
    "overlap": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "fitted": pl.Float64,
    "chance": pl.Float64,
    "phi": pl.Float64,
    "phi_low": pl.Float64,
    "phi_high": pl.Float64,
}
ENOUGH = 0.9  # of the top k, for two captures to be called alike
FEWEST = 8  # samples of a part
_MOST_SIZES = 12
_MOST_GROUPS = 4
_RANGE = (5, 95)  # percentiles
_FITTED = 2 / 3  # of the sizes, the larger ones


@dataclass(frozen=True, eq=False)
class StabilityCurve:
    """How much of the top k two captures of the same size have in common.

    Args:
        curve: one line per size: `samples`, `k`, `groups` into which the samples were divided, `pairs` of them in all repeats;
            `overlap`, the mean share of the top k that a pair has in common, `low` and `high`, its 5th and 95th percentile over
            pairs, `fitted`, what a smooth curve through the larger sizes says; `chance`, what random orders would share; `phi`,
            Nogueira's Φ, and `phi_low` and `phi_high`, its 5th and 95th percentile over repeats.
        samples: how many the cache has.
        needed: how many samples give ENOUGH overlap, interpolated on the fitted curve; None where more than half of the samples
            would be needed.
        lines: the same in plain sentences.
    """

    curve: pl.DataFrame
    samples: int
    needed: int | None
    lines: list[str]

    def __repr__(self) -> str:
        """The sentences, as a console shows this object."""
        return "\n".join(self.lines)

    def table(self) -> Iterator[str]:
        """The curve as lines of plain text, titles first."""
        yield f"{'samples':>7}  {'overlap':>7}  {'fitted':>6}  {'5 to 95 %':>12}  {'chance':>6}  {'phi':>5}"
        for line in self.curve.to_dicts():
            between = f"{line['low']:.2f} to {line['high']:.2f}"
            phi = "" if line["phi"] is None else f"{line['phi']:.2f}"
            shares = f"{line['overlap']:>7.2f}  {line['fitted']:>6.2f}  {between:>12}  {line['chance']:>6.2f}"
            yield f"{line['samples']:>7}  {shares}  {phi:>5}"


@library_call(ScoreSettings, StabilitySettings)
def stability(
    cache: str | Path,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    partial: bool = False,
    **options: Any,
) -> StabilityCurve:
    """See how many samples the top of a ranking needs; the library call of `headscore stability`.

    The samples are divided at random into disjoint parts of equal size, each part is ranked by itself, and their first heads
    are compared. Parts of the samples are captures of other rows, so this says what fresh captures of that size would share.

    Args:
        cache: a cache folder or a single shard file.
        out: where the files go; nothing is written if it is None.
        overwrite: replace what another run left in `out`.
        partial: take what is there of a capture that is not finished, such as to see whether it has samples enough.
        options: the fields of ScoreSettings and StabilitySettings, by the names and with the defaults of the command line.

    Raises InputError for options or a cache that cannot be used, fewer than 4 samples, and where `out` holds another run.
    """
    own = StabilitySettings(**pick(StabilitySettings, options))
    settings = ScoreSettings(**{name: value for name, value in options.items() if name not in pick(StabilitySettings, options)})
    path = given_path("cache", cache)
    if out is None:
        return stability_of(open_cache(path), settings, own, partial)
    folder = given_path("--out", out)
    with results_folder(folder, (*RESULT_FILES, CONFIG_FILE, LOG_FILE)):
        extra = {
            "cache": written_place("cache", path, folder),
            "partial": partial,
            **{field.name: getattr(own, field.name) for field in fields(own)},
        }
        config = {**options_config(settings, extra, folder), RECORD_KEY: {"headscore": __version__}}
        require_free(folder, RESULT_FILES, config, overwrite)
        found = stability_of(open_cache(path), settings, own, partial)
        contents = dict(zip(RESULT_FILES, ("".join(f"{line}\n" for line in found.lines), csv(found.curve)), strict=True))
        again = "headscore stability --config config.yaml --out NEW_FOLDER"
        write_analysis(folder, contents, config, how_to_repeat=again, overwrite=overwrite)
    return found


def stability_of(cache: Cache, settings: ScoreSettings, own: StabilitySettings, partial: bool = False) -> StabilityCurve:
    """The stability of the ranking of an opened cache. Raises InputError as `stability`."""
    recipe = choose_recipe(cache, settings, partial)
    store = open_store(cache, recipe.mode)
    whole = cache_means(cache, recipe, store, None)  # so that all is checked, and measures are kept
    ranked = Scores(heads_frame(recipe, whole.means, settings), whole.samples, {}, "", settings, cache.metadata)
    k, heads, n = ranked.top_k, len(ranked.heads), whole.samples
    if n < 4:
        raise InputError(f"{cache.path}: has {n} samples; the stability of a ranking needs 4 or more")
    names = [name for name, weight in settings.weights.items() if weight]
    groups, weights = _divisions(n, own)
    means = weighted_means(cache, recipe, store, names, weights)
    lines, start = [], 0
    for size, parts in groups.items():
        stop = start + own.repeats * parts
        some = {name: values[start:stop] for name, values in means.items()}
        start = stop
        if any(np.isnan(values).any() for values in some.values()):
            continue  # some head has no value in so few samples
        tops = ranked_replicates(recipe, some, settings)["rank"].to_numpy() <= k
        lines.append({"samples": size, "k": k, **_agreement(tops.reshape(own.repeats, parts, heads), k)})
    curve = _fitted(pl.DataFrame(lines, schema=SCHEMA))
    needed = _needed(curve)
    return StabilityCurve(curve, n, needed, _told(curve, n, needed, settings.by))


def _divisions(n: int, own: StabilitySettings) -> tuple[dict[int, int], npt.NDArray[np.uint8]]:
    """How many disjoint parts of each size there are in one division, and of every division which samples each part has.

    The second is 0 or 1, [repeats · parts of the first size, then of the next, …; n].
    """
    random = np.random.default_rng(own.seed)
    sizes = np.unique(np.geomspace(min(FEWEST, n // 2), n // 2, _MOST_SIZES).round().astype(int))
    groups = {int(size): min(n // int(size), _MOST_GROUPS) for size in sizes}
    weights = np.zeros((own.repeats * sum(groups.values()), n), np.uint8)
    line = 0
    for size, parts in groups.items():
        for _ in range(own.repeats):
            order = random.permutation(n)[: size * parts].reshape(parts, size)
            weights[np.arange(line, line + parts)[:, None], order] = 1
            line += parts
    return groups, weights


def _agreement(tops: npt.NDArray[np.bool_], k: int) -> dict[str, Any]:
    """Overlap and Φ of the tops of parts, [divisions, parts, heads]."""
    divisions, parts, heads = tops.shape
    chosen = tops.astype(np.float64)
    one, other = np.triu_indices(parts, 1)
    shares = (chosen @ chosen.transpose(0, 2, 1))[:, one, other].ravel() / k
    phis = [found.value for found in map(nogueira, chosen) if found]
    low, high = np.percentile(shares, _RANGE)
    phi_low, phi_high = np.percentile(phis, _RANGE) if phis else (None, None)
    return {
        "groups": parts,
        "pairs": divisions * len(one),
        "overlap": float(shares.mean()),
        "low": low,
        "high": high,
        "chance": chance_overlap(k, heads) / k,
        "phi": float(np.mean(phis)) if phis else None,
        "phi_low": phi_low,
        "phi_high": phi_high,
    }


def _fitted(curve: pl.DataFrame) -> pl.DataFrame:
    """The curve with `fitted`: a straight line through the logarithms of the size and of what is not shared.

    Divisions into halves all are of the same samples, so chance moves the last sizes most; smaller ones steady them. Sizes too
    small for the line keep what was measured. benchmarks/stability_truth.py shows what that gains.
    """
    start = len(curve) - round(_FITTED * len(curve))
    tail = curve[start:]
    if len(tail) < 3:
        return curve.with_columns(fitted="overlap")
    sizes = np.log(tail["samples"].to_numpy())
    least = 0.5 / (tail["k"] * tail["pairs"]).to_numpy()  # half of the smallest share that could have been seen
    line = np.polynomial.Polynomial.fit(sizes, np.log(np.maximum(1 - tail["overlap"].to_numpy(), least)), 1)
    made = pl.Series(np.clip(1 - np.exp(line(sizes)), 0.0, 1.0))
    return curve.with_columns(fitted=pl.concat([curve["overlap"][:start], made]))


def _needed(curve: pl.DataFrame) -> int | None:
    """The size from which on the fitted curve stays at ENOUGH or more, interpolated in the logarithm of the size."""
    sizes, shares = curve["samples"].to_list(), curve["fitted"].to_list()
    if not shares or shares[-1] < ENOUGH:
        return None
    first = len(shares) - 1
    while first and shares[first - 1] >= ENOUGH:
        first -= 1
    if not first:
        return int(sizes[0])
    reach = (ENOUGH - shares[first - 1]) / (shares[first] - shares[first - 1])
    return math.ceil(sizes[first - 1] * (sizes[first] / sizes[first - 1]) ** reach)


def _told(curve: pl.DataFrame, n: int, needed: int | None, unit: str) -> list[str]:
    if curve.is_empty():
        return [
            "how stable the ranking is cannot be told: in any half of the samples some head has no value of a weighted signal"
        ]
    last = curve.row(-1, named=True)
    k = last["k"]
    lines = [
        f"two captures of {last['samples']} samples, half of the {n} there are, share {last['fitted'] * k:.1f} of their top "
        f"{k} {heads_or_groups(unit)} on average ({last['fitted']:.2f}; 5 to 95 % of pairs: "
        f"{last['low']:.2f} to {last['high']:.2f}); chance would give {last['chance'] * k:.1f}"
    ]
    if needed is None:
        lines.append(
            f"two captures that share {ENOUGH:g} of their top {k} would need more than {last['samples']} samples each; how "
            "many more cannot be known from halves of this cache"
        )
    elif needed == curve["samples"][0]:
        lines.append(f"{needed} samples, the fewest that were tried, give {ENOUGH:g} overlap or more between two captures")
    else:
        lines.append(f"about {needed} samples give {ENOUGH:g} overlap between two captures")
    return lines
