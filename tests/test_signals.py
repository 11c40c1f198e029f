"""Every built-in measure and signal is what its documentation says: by hand, from eager attention, and for any cache."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from eager import Eager, EagerModel
from hypothesis import given
from hypothesis import strategies as st
from made_caches import BY_HAND, write_cache

import headscore
from headscore.data.cache.folder import open_cache
from headscore.data.cache.reader import Shard
from headscore.data.errors import DamagedShardError
from headscore.data.options.settings import ScoreSettings
from headscore.score.expressions import require_line_by_line
from headscore.score.measures import RowSums
from headscore.score.recipe import Recipe, choose_recipe

LN2, LN3 = math.log(2), math.log(3)


def recipe_of(cache: Path, **options: Any) -> Recipe:
    return choose_recipe(open_cache(cache), ScoreSettings(**options), partial=False)


# ---------------------------------------------------------------------------------------------------------------- by hand

# head 0: rows (1/2 1/4 1/4 0) and (1 0); head 1: uniform over 4 and over 2; question is tokens 1 and 2, then token 0
BY_ROWS: dict[str, list[float]] = {
    "sink": [(1 / 2 + 1) / 2, (1 / 4 + 1 / 2) / 2],
    "ent_free": [-LN2, (-LN3 - 0) / 2],  # nothing is left of (1 0)
    "task": [(1 / 2 + 1) / 2, (1 / 2 + 1 / 2) / 2],
    "task_free": [(1 / 2) / (1 / 2), ((1 / 2) / (3 / 4) + 0) / 2],
    "largest": [(1 / 2 + 1) / 2, (1 / 4 + 1 / 2) / 2],
    "near": [-(3 / 2 + 2 / 4 + 1 / 4 + 1) / 2, -((3 + 2 + 1) / 4 + 1 / 2) / 2],
    "lift": [((1 / 2) / (2 / 4) + 1 / (1 / 2)) / 2, 1],
    "mass_question": [(1 / 2 + 1) / 2, (1 / 2 + 1 / 2) / 2],
    "mass_choices": [(0 + 1) / 2, (1 / 4 + 1 / 2) / 2],
    "mass_template": [0, 0],
    "mass_special": [(1 / 2 + 0) / 2, (1 / 4 + 0) / 2],
}
LAST = BY_ROWS | {
    "ent": [-(3 / 2 * LN2 + 0) / 2, -(2 * LN2 + LN2) / 2],
    "focus": [-(3 / 4 + 0) / 2, -1],
    "effective": [-(2**1.5 + 1) / 2, -(4 + 2) / 2],
}
ALL = {name: values[::-1] for name, values in BY_ROWS.items()} | {  # whose rows are those of the other head, entropies out + 3
    "ent": [-(4 + 6) / 2, -(5 + 7) / 2],
    "focus": [-(4 / (2 * LN2) + 6 / LN2) / 2, -(5 / (2 * LN2) + 7 / LN2) / 2],
    "effective": [-(math.exp(4) + math.exp(6)) / 2, -(math.exp(5) + math.exp(7)) / 2],
}
Z = {"out_all": [(2 + 4) / 2, (3 + 5) / 2], "out_relative": [(1 / 2 + 3 / 4) / 2, (2 / 3 + 4 / 5) / 2]}
RESULT = {"out_all": [(3 + 5) / 2, (4 + 6) / 2], "out_relative": [(10 / 3 + 30 / 5) / 2, (20 / 4 + 40 / 6) / 2]}
HAND_WORKED = {
    ("last_token", "z"): LAST | Z | {"out": [(1 + 3) / 2, (2 + 4) / 2]},
    ("last_token", "result"): LAST | RESULT | {"out": [(10 + 30) / 2, (20 + 40) / 2]},
    ("all_tokens", "z"): ALL | Z | {"out": Z["out_all"]},
    ("all_tokens", "result"): ALL | RESULT | {"out": RESULT["out_all"]},
}


@pytest.mark.parametrize(("mode", "head_output"), HAND_WORKED)
def test_every_signal_equals_fractions_worked_by_hand(tmp_path: Path, mode: str, head_output: str) -> None:
    cache = write_cache(tmp_path, **BY_HAND)
    scores = headscore.score(cache, score_query_mode=mode, head_output=head_output)
    expected = HAND_WORKED[mode, head_output]
    assert expected.keys() <= set(scores.signals)
    for name, values in expected.items():
        assert scores.heads[name].to_list() == pytest.approx(values, abs=1e-6), name


def test_every_measure_equals_fractions_worked_by_hand(tmp_path: Path) -> None:
    """Each by sample, in the order head 0, samples 0 and 1, then head 1."""
    cache = write_cache(tmp_path, **BY_HAND)
    measures = {
        "output_norm": [1, 3, 2, 4],
        "result_norm": [10, 30, 20, 40],
        "all_output_norm": [2, 4, 3, 5],
        "all_result_norm": [3, 5, 4, 6],
        "entropy": [3 / 2 * LN2, 0, 2 * LN2, LN2],
        "entropy_free": [LN2, None, LN3, 0],
        "largest": [1 / 2, 1, 1 / 4, 1 / 2],
        "sink": [1 / 2, 1, 1 / 4, 1 / 2],
        "rest": [1 / 2, 0, 3 / 4, 1 / 2],
        "distance": [9 / 4, 1, 3 / 2, 1 / 2],
        "mass_question": [1 / 2, 1, 1 / 2, 1 / 2],
        "mass_choices": [0, 1, 1 / 4, 1 / 2],
        "mass_template": [0, 0, 0, 0],
        "mass_special": [1 / 2, 0, 1 / 4, 0],
        "mass_choices+question": [1 / 2, 1, 3 / 4, 1 / 2],  # a token in both counts once
        "evens": [1 / 2 + 1 / 4, 1, 1 / 2, 1 / 2],
        "weighted": [-(1 / 4 + 2 / 4) / 2, 0, -(1 + 2 + 3) / 8, -1 / 4],
        "task_rest": [1 / 2, 0, 3 / 4, 1 / 2 - 1 / 2],
        "task_mass": [1 / 2, 1, 3 / 4, 1 / 2],
        "task_tokens": [3, 1, 3, 1],
        "tokens": [4, 2, 4, 2],
        "tokens_question": [2, 1, 2, 1],
        "tokens_choices": [1, 1, 1, 1],
        "tokens_template": [0, 0, 0, 0],
        "tokens_special": [1, 0, 1, 0],
        "tokens_choices+question": [3, 1, 3, 1],
        "norm": [1, 3, 2, 4],
        "last_norm": [1, 3, 2, 4],
        "all_norm": [2, 4, 3, 5],
    }
    options: dict[str, Any] = {
        "task_span": ["question", "choices"],
        "measure": {"evens": "position % 2 = 0", "weighted": "-position / 2"},
    }
    lines = headscore.scan_cache(cache, **options).collect()
    assert lines.select("head", "sample").rows() == [(0, 0), (0, 1), (1, 0), (1, 1)]
    known = recipe_of(cache, **options).schema.keys() - {"sample", "row", "layer", "head", "kv_head"}
    assert known == measures.keys()
    for name, values in measures.items():
        found = lines[name].to_list()
        assert [value is None for value in found] == [value is None for value in values], name
        assert [value or 0 for value in found] == pytest.approx([value or 0 for value in values], abs=1e-6), name


# rows of one, three and four tokens; those of head 1 sum to less than 1, as with attention sinks; the task's tokens: the only
# one, none, all
EDGES = {
    "rows": np.array([[[1, 1, 0, 0, 1 / 4, 1 / 4, 1 / 4, 1 / 4], [1 / 2, 0, 0, 1 / 2, 0, 0, 0, 0]]]),
    "out": np.array([[[0.0, 2.0, 3.0], [1.0, 0.0, 3.0]]]),
    "span": [1, 2, 2, 2, 1, 1, 1, 1],
    "lengths": [1, 3, 4],
    "others": {"all_tokens/output_norm": np.array([[[0.0, 4.0, 1.0], [0.0, 0.0, 2.0]]])},
}
AT_THE_EDGES: dict[str, list[float | None]] = {  # head 0 with its three samples, then head 1
    "out": [0, 2, 3, 1, 0, 3],
    "ent": [0, 0, -2 * LN2, -LN2 / 2, -LN2 / 2, 0],
    "task": [1, 0, 1, 1 / 2, 0, 0],
    "sink": [1, 1, 1 / 4, 1 / 2, 0, 0],
    "focus": [None, 0, -1, None, -LN2 / 2 / LN3, 0],
    "ent_free": [None, None, -LN3, None, 0, None],
    "task_free": [None, None, 1, None, 0, None],
    "largest": [1, 1, 1 / 4, 1 / 2, 1 / 2, 0],
    "effective": [-1, -1, -4, -math.sqrt(2), -math.sqrt(2), -1],
    "near": [0, -2, -3 / 2, 0, 0, 0],
    "lift": [1, None, 1, 1 / 2, None, 0],
    "mass_question": [1, 0, 1, 1 / 2, 0, 0],
    "mass_choices": [0, 1, 0, 0, 1 / 2, 0],
    "mass_template": [0] * 6,
    "mass_special": [0] * 6,
    "out_relative": [None, 1 / 2, 3, None, None, 3 / 2],
    "out_all": [0, 4, 1, 0, 0, 2],
}


def test_every_signal_at_its_edges(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, **EDGES)
    lines = headscore.scan_cache(cache).collect()
    scores = headscore.score(cache, weight={"out": 1, "ent": 0, "task": 0})
    for name, values in AT_THE_EDGES.items():
        found = lines[name].to_list()
        assert [value is None for value in found] == [value is None for value in values], (name, found)
        assert [value or 0 for value in found] == pytest.approx([value or 0 for value in values], abs=1e-6), name
        for head, some in enumerate((values[:3], values[3:])):
            defined = [value for value in some if value is not None]
            mean = sum(defined) / len(defined) if defined else None
            assert scores.heads[name][head] == (pytest.approx(mean, abs=1e-6) if defined else None), name
        assert scores.undefined[name] == max(some.count(None) for some in (values[:3], values[3:])), name


# ------------------------------------------------------------------------------------------------------ sums over rows


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(0, 999))
def test_sums_over_rows_equal_their_formulas(lengths: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = np.concatenate([random.dirichlet(np.full(n, 0.3), size=3) for n in lengths], axis=1).astype(np.float16)
    rows[random.random(rows.shape) < 0.1] = 0
    offsets = np.cumsum([0, *lengths])
    first = np.isin(np.arange(sum(lengths)), offsets[:-1])
    member = random.random(sum(lengths)) < random.choice([0, 0.4, 1])
    weights = np.stack([~first, member, random.normal(size=len(first))], axis=1).astype(float)
    whole = RowSums(rows.view(np.uint16), offsets, weights, ["rest", "mass", "any"])
    for i, (start, stop) in enumerate(itertools.pairwise(offsets)):
        for head in range(3):
            p = rows[head, start:stop].astype(float)
            q = p[1:] / p[1:].sum() if p[1:].sum() else None
            assert whole.measure("entropy")[head, i] == pytest.approx(entropy(p), abs=1e-9)
            assert whole.measure("largest")[head, i] == p.max(), "exactly"
            assert whole.measure("mass")[head, i] == p[member[start:stop]].sum(), "exactly"
            assert whole.measure("rest")[head, i] == p[1:].sum(), "exactly"
            assert whole.measure("any")[head, i] == pytest.approx(p @ weights[start:stop, 2], abs=1e-12)
            free = whole.measure("entropy_free")[head, i]
            if q is None:
                assert math.isnan(free)
            else:  # of a row whose first token has nearly all, the rounding of -p ln p shows
                assert free == pytest.approx(entropy(q), abs=len(p) * 2**-34 / p[1:].sum() + 1e-9) and free >= 0
    for i, (start, stop) in enumerate(itertools.pairwise(offsets)):
        alone = RowSums(
            rows[:, start:stop].copy().view(np.uint16), offsets[:2] * 0 + [0, stop - start], weights[start:stop], whole._linear
        )
        for name in ("entropy", "entropy_free", "largest", "mass", "rest"):
            assert alone.measure(name)[:, 0].tobytes() == whole.measure(name)[:, i].copy().tobytes(), "to the last bit"


@pytest.mark.parametrize("impossible", [-0.5, 1.001, 1.5, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("array", ["last_token/attention", "last_token/output_norm"])
def test_values_that_cannot_be_are_damage(tmp_path: Path, array: str, impossible: float) -> None:
    arrays = {"rows": BY_HAND["rows"].copy(), "out": BY_HAND["out"].copy()}
    arrays["rows" if "attention" in array else "out"][0, 1, 1] = impossible
    cache = write_cache(tmp_path, **(BY_HAND | arrays))
    if array == "last_token/output_norm" and 0 < impossible < 2:
        assert headscore.score(cache).samples == 2
        return
    for ask in (lambda: headscore.score(cache), lambda: headscore.scan_cache(cache).collect()):
        with pytest.raises(
            DamagedShardError, match=f"'{array}' holds (values|weights) that are (not between 0 and 1|negative or not)"
        ):
            ask()


# ------------------------------------------------------------------------------------------------- against eager attention


@dataclass(frozen=True)
class Sample:
    """A sample's eager attention, and what is asked of it: norms and row [L,H,T], and which tokens are in each span."""

    full: Eager
    all_tokens: bool
    result: bool
    spans: dict[str, np.ndarray]
    task: np.ndarray

    @property
    def row(self) -> np.ndarray:
        return self.full.patterns.mean(axis=2) if self.all_tokens else self.full.patterns[:, :, -1]

    @property
    def norms(self) -> np.ndarray:
        return self.full.result_norms if self.result else self.full.z_norms

    @property
    def tokens(self) -> int:
        return self.full.patterns.shape[-1]

    @property
    def entropies(self) -> np.ndarray:
        return self.full.row_entropies.mean(axis=-1) if self.all_tokens else entropy(self.row)


def entropy(rows: np.ndarray) -> Any:
    return -np.where(rows > 0, rows * np.log(np.where(rows > 0, rows, 1)), 0).sum(axis=-1)


FORMULAS: dict[str, Callable[[Sample], Any]] = {  # written from the documentation, not from the code
    "out": lambda s: s.norms.mean(axis=-1) if s.all_tokens else s.norms[..., -1],
    "ent": lambda s: -s.entropies,
    "task": lambda s: s.row[..., s.task].sum(axis=-1),
    "sink": lambda s: s.row[..., 0],
    "focus": lambda s: -s.entropies / math.log(s.tokens),
    "ent_free": lambda s: -entropy(s.row[..., 1:] / s.row[..., 1:].sum(axis=-1, keepdims=True)),
    "task_free": lambda s: s.row[..., 1:][..., s.task[1:]].sum(axis=-1) / s.row[..., 1:].sum(axis=-1),
    "largest": lambda s: s.row.max(axis=-1),
    "effective": lambda s: -np.exp(s.entropies),
    "near": lambda s: -(s.row * np.arange(s.tokens)[::-1]).sum(axis=-1),
    "lift": lambda s: s.row[..., s.task].sum(axis=-1) / s.task.mean(),
    **{
        f"mass_{span}": lambda s, span=span: s.row[..., s.spans[span]].sum(axis=-1)
        for span in ("question", "choices", "template", "special")
    },  # type: ignore[misc]
    "out_relative": lambda s: s.norms[..., -1] / s.norms.mean(axis=-1),
    "out_all": lambda s: s.norms.mean(axis=-1),
}


def eager_samples(cache: Path, eager: EagerModel, mode: str, head_output: str, task: list[str]) -> Iterator[Sample]:
    """Nothing but token ids and span masks comes from the cache."""
    for path in open_cache(cache).shards:
        with Shard(path) as shard:
            offsets, ids, bits = shard.offsets(), shard.read("tokens/id"), shard.read("tokens/span")
        for start, stop in itertools.pairwise(offsets):
            names = open_cache(cache).metadata["span_names"]
            spans = {name: bits[start:stop] >> bit & 1 == 1 for bit, name in enumerate(names)}
            task_tokens = np.any([spans[name] for name in task], axis=0)
            yield Sample(eager(ids[start:stop]), mode == "all_tokens", head_output == "result", spans, task_tokens)


def direct_measures(sample: Sample, task: str) -> dict[str, Any]:
    """The columns that a signal can be made of, from eager attention in float64."""
    row, rest = sample.row, sample.row[..., 1:].sum(axis=-1)
    z, result = sample.full.z_norms, sample.full.result_norms
    counts = {f"tokens_{name}": float(inside.sum()) for name, inside in sample.spans.items()}
    masses = {f"mass_{name}": row[..., inside].sum(axis=-1) for name, inside in sample.spans.items()}
    norms = (sample.norms[..., -1], sample.norms.mean(axis=-1))
    return {
        "tokens": float(sample.tokens), **counts, f"tokens_{task}": float(sample.task.sum()), **masses,
        "output_norm": z[..., -1], "result_norm": result[..., -1],
        "all_output_norm": z.mean(axis=-1), "all_result_norm": result.mean(axis=-1),
        "entropy": sample.entropies, "entropy_free": entropy(row[..., 1:] / rest[..., None]), "largest": row.max(axis=-1),
        "sink": row[..., 0], "rest": rest, "distance": (row * np.arange(sample.tokens)[::-1]).sum(axis=-1),
        f"mass_{task}": row[..., sample.task].sum(axis=-1), "task_mass": row[..., sample.task].sum(axis=-1),
        "task_tokens": float(sample.task.sum()), "task_rest": row[..., 1:][..., sample.task[1:]].sum(axis=-1),
        "norm": norms[1] if sample.all_tokens else norms[0], "last_norm": norms[0], "all_norm": norms[1],
    }  # fmt: skip


@pytest.mark.parametrize("task", [["question"], ["choices", "special"]])
@pytest.mark.parametrize("head_output", ["z", "result"])
@pytest.mark.parametrize("mode", ["last_token", "all_tokens"])
def test_every_signal_equals_eager_attention_for_each_sample(
    cache: Path, llama_eager: EagerModel, mode: str, head_output: str, task: list[str]
) -> None:
    """By the formula above, and, for signals that have none there yet, by their own over measures of float64."""
    options: dict[str, Any] = {"score_query_mode": mode, "head_output": head_output, "task_span": task}
    lines = headscore.scan_cache(cache, **options).sort("sample", "layer", "head").collect()
    recipe = recipe_of(cache, **options)
    measures: list[pl.DataFrame] = []
    by_formula: dict[str, list[Any]] = {name: [] for name in FORMULAS}
    for sample in eager_samples(cache, llama_eager, mode, head_output, task):
        places = sample.row.shape[:2]
        direct = direct_measures(sample, recipe.task)
        measures.append(pl.DataFrame({name: np.broadcast_to(value, places).reshape(-1) for name, value in direct.items()}))
        for name, formula in FORMULAS.items():
            by_formula[name].append(np.broadcast_to(formula(sample), places).reshape(-1))
    frame = pl.concat(measures)
    assert recipe.schema.keys() - set(frame.columns) == {"sample", "row", "layer", "head", "kv_head"}
    for name in frame.columns:
        np.testing.assert_allclose(lines[name], frame[name], rtol=2e-3, atol=2e-3, err_msg=name)
    for name, signal in recipe.signals.items():
        np.testing.assert_allclose(lines[name], frame.select(signal.expression).to_series(), rtol=4e-3, atol=2e-3, err_msg=name)
    for name, values in by_formula.items():
        np.testing.assert_allclose(lines[name], np.concatenate(values), rtol=4e-3, atol=2e-3, err_msg=name)


# ------------------------------------------------------------------------------------------------------- for any cache


def random_cache(folder: Path, seed: int, lengths: list[int] | None = None) -> Path:
    """Rows of few and many tokens, some of which have no weight, some of all of it; spans of none and of all tokens."""
    random = np.random.default_rng(seed)
    lengths = lengths or random.integers(1, 7, 9).tolist()
    rows = [random.dirichlet(np.full(n, random.choice([0.01, 0.3, 3])), size=(2, 3)) for n in lengths]
    rows = [row * random.choice([0, 0.4, 1], size=(2, 3, 1), p=[0.1, 0.3, 0.6]) for row in rows]
    out = random.choice([0.0, 1e-30, 0.5, 1e30], size=(2, 3, len(lengths))).astype(np.float32)
    span = random.choice([0, 1, 2, 3, 8], size=sum(lengths)).tolist()
    everywhere = {"all_tokens/output_norm": out * random.choice([0, 1, 2], size=out.shape), "all_tokens/entropy": out % 7}
    return write_cache(folder, np.concatenate(rows, axis=2).astype(np.float16), out, span, lengths, everywhere)


@pytest.mark.parametrize("mode", ["last_token", "all_tokens"])
@pytest.mark.parametrize("seed", range(6))
def test_signals_are_finite_or_undefined_for_any_cache(tmp_path: Path, seed: int, mode: str) -> None:
    cache = random_cache(tmp_path / "c", seed)
    for options in ({}, {"head_output": "result", "task_span": ["special"]}, {"task_span": ["question", "choices"]}):
        lines = headscore.scan_cache(cache, score_query_mode=mode, **options).collect()
        for name in recipe_of(cache, score_query_mode=mode, **options).signals:
            assert lines[name].drop_nulls().is_finite().all(), name
        assert headscore.score(cache, score_query_mode=mode, **options).heads["combined"].is_finite().all()


@pytest.mark.parametrize("mode", ["last_token", "all_tokens"])
def test_signals_of_a_sample_are_those_it_has_alone(tmp_path: Path, mode: str) -> None:
    together = headscore.scan_cache(random_cache(tmp_path / "c", 3), score_query_mode=mode).sort("sample", "layer", "head")
    whole = together.collect()
    with Shard(open_cache(tmp_path / "c").shards[0]) as shard:
        arrays = {name: shard.read(name) for name in shard.names}
        offsets = shard.offsets()
    for sample, (start, stop) in enumerate(itertools.pairwise(offsets)):
        some = {
            name: values[..., start:stop]
            if name.startswith("tokens/") or name.endswith("attention")
            else values[..., sample : sample + 1]
            for name, values in arrays.items()
            if not name.startswith(("layers", "samples"))
        }
        alone = write_cache(
            tmp_path / f"{sample}", some["last_token/attention"], some["last_token/output_norm"],
            some["tokens/span"].tolist(), [int(stop - start)], some,
        )  # fmt: skip
        found = headscore.scan_cache(alone, score_query_mode=mode).collect().drop("sample", "row")
        assert found.equals(whole.filter(sample=sample).drop("sample", "row"))


def test_layers_that_are_read_together_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = random_cache(tmp_path, 0)
    together = headscore.scan_cache(cache, fresh=True).collect()
    assert together["layer"].n_unique() > 1
    monkeypatch.setattr("headscore.score.measures.ROWS", 1)
    assert headscore.scan_cache(cache, fresh=True).collect().equals(together)


def test_built_in_signals_are_per_sample_and_keep_their_names(cache: Path) -> None:
    recipe = recipe_of(cache, task_span=["choices", "question"])
    random = np.random.default_rng(0)
    frame = pl.DataFrame({name: random.random(50) + 1 for name in recipe.schema})
    for name, signal in recipe.signals.items():
        assert signal.name == name and not signal.own
        require_line_by_line(signal.expression, recipe.schema, name, "sample")
        if name in recipe.schema:
            assert frame.select(signal.expression).to_series().equals(frame[name]), "a scan has one column of the name"


def test_built_in_signals_say_where_they_come_from_and_how_large_they_get() -> None:
    from headscore.score.signal_sources import built_in_signals

    for name, function in built_in_signals().items():
        assert function.__doc__ and "Range " in function.__doc__, name
