"""`headscore export`: each file through the few lines by which its consumer reads it, what it says of itself, and refusals."""

import datetime
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from cli_runs import Cli
from exported import HEADS, KV_HEADS, LAYERS

import headscore
from headscore.data.cache.metadata import Metadata
from headscore.data.cache.model_shape import shape_of, shape_record
from headscore.data.errors import InputError
from headscore.data.files.whole_file import TEMPORARY
from headscore.data.files.whole_folder import whole_folder
from headscore.score.export.card import _escaped
from headscore.score.export.formats import FORMATS
from headscore.score.results import read_results

SUFFIXES = {"csv": ".csv", "parquet": ".parquet", "retrieval_head": ".json", "qrhead": ".yaml", "lofit": ".npy", "card": ".md"}
CHOOSING = {"qrhead", "shira", "peft", "checkpoint"}  # those that write chosen heads only


@pytest.fixture
def results(ranked: tuple[Path, Path]) -> Path:
    return ranked[1]


def export(results: Path, folder: Path, format: str, **options: Any) -> Path:
    more = {"top_k_per_layer": 1} if format in CHOOSING and not {"top_k", "top_k_per_layer"} & options.keys() else {}
    return headscore.export(results, folder / f"made{SUFFIXES.get(format, '')}", format=format, **options, **more).path


def changed(results: Path, folder: Path, change: Callable[[Any], None], heads: pl.DataFrame | None = None) -> Path:
    """A copy of results with another config.yaml, and perhaps other heads."""
    copy = shutil.copytree(results, folder / "changed")
    config = yaml.safe_load((copy / "config.yaml").read_text())
    change(config)
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    if heads is not None:
        heads.write_parquet(copy / "heads.parquet")
    return copy


def order(results: Path) -> list[tuple[int, int]]:
    return read_results(results).order()


# ---------------------------------------------------------------------------------------------- what consumers make of it


def test_csv_and_parquet_are_lists_that_compare_reads(results: Path, tmp_path: Path) -> None:
    for format in ("csv", "parquet"):
        path = export(results, tmp_path, format, top_k=5)
        read = pl.read_csv(path) if format == "csv" else pl.read_parquet(path)
        assert list(read.select("layer", "head").iter_rows()) == order(results)[:5] and read["rank"].to_list() == [
            1,
            2,
            3,
            4,
            5,
        ]
        assert headscore.compare([results, path], top_k=5).pairs["shared"].to_list() == [5]


def load_attn_pattern(folder: Path) -> tuple[np.ndarray, int, int]:
    """As duo_attn/utils.py of DuoAttention does."""
    values = np.clip(np.loadtxt(folder / "full_attention_heads.tsv", dtype=float, delimiter="\t"), 0, 1)
    config = json.loads((folder / "config.json").read_text())
    return values, config["sink_size"], config["recent_size"]


def test_duo_is_a_matrix_of_groups_by_their_place(results: Path, tmp_path: Path) -> None:
    values, sink, recent = load_attn_pattern(export(results, tmp_path, "duo"))
    assert values.shape == (LAYERS, KV_HEADS) and (sink, recent) == (128, 256)
    heads = pl.read_parquet(results / "heads.parquet")
    mean = heads.group_by("layer", "kv_head").agg(pl.col("combined").mean(), pl.col("rank").min())
    expected = list(mean.sort(["combined", "rank"], descending=[True, False]).select("layer", "kv_head").iter_rows())
    assert [divmod(int(place), KV_HEADS) for place in np.argsort(-values, axis=None)] == expected
    count = values.size
    assert sorted(values.flatten()) == pytest.approx([(place + 0.5) / count for place in range(count)])
    # kvpress' DuoAttentionPress: the lowest of all values are the heads that keep less
    streaming = np.zeros(count, bool)
    streaming[np.argsort(values.flatten())[: round(count * 0.5)]] = True
    assert {divmod(int(place), KV_HEADS) for place in np.flatnonzero(streaming)} == set(expected[count // 2 :])


def test_duos_values_differ_by_more_than_its_readers_noise() -> None:
    from headscore.data.cache.metadata import MAX_HEADS

    assert 1 / MAX_HEADS > 10 * 1e-6


def test_a_group_may_be_as_its_best_head(results: Path, tmp_path: Path) -> None:
    values = load_attn_pattern(export(results, tmp_path, "duo", group="max", sink_size=4, recent_size=8))
    assert values[1:] == (4, 8)
    heads = (
        pl.read_parquet(results / "heads.parquet").sort("rank").unique(["layer", "kv_head"], keep="first", maintain_order=True)
    )
    best = list(heads.sort(["combined", "rank"], descending=[True, False]).select("layer", "kv_head").iter_rows())
    assert [divmod(int(place), KV_HEADS) for place in np.argsort(-values[0], axis=None)] == best


def test_retrieval_head_is_one_line_in_the_order_of_layers(results: Path, tmp_path: Path) -> None:
    path = export(results, tmp_path, "retrieval_head")
    with path.open() as file:
        scores = json.loads(file.readline())
        assert not file.read()
    ranked = sorted(((key, np.mean(each)) for key, each in scores.items()), key=lambda pair: -pair[1])  # Retrieval_Head
    assert [tuple(map(int, key.split("-"))) for key, _ in ranked] == order(results)
    capacity = np.array([np.mean(each) for each in scores.values()])  # HeadKV and KVCache-Factory: the keys are never read
    share = (capacity / capacity.sum()).reshape(LAYERS, HEADS)
    assert (share > 0).all() and np.unravel_index(share.argmax(), share.shape) == order(results)[0]


def test_a_signals_own_means_are_given_where_they_are_in_the_rankings_order(ranked: tuple[Path, Path], tmp_path: Path) -> None:
    headscore.score(ranked[1].parent / "cache", tmp_path / "within", within="model")
    scores = json.loads(export(tmp_path / "within", tmp_path, "retrieval_head", signal="task").read_text())
    heads = pl.read_parquet(tmp_path / "within" / "heads.parquet")
    assert [each for (each,) in scores.values()] == heads.sort("layer", "head")["task"].to_list()
    by_entropy = export(tmp_path / "within", tmp_path / "x", "retrieval_head", signal="-ent")
    assert all(0 < each < 1 for (each,) in json.loads(by_entropy.read_text()).values()), "negative means cannot be divided by"


def test_qrhead_is_a_head_set(results: Path, tmp_path: Path) -> None:
    config = yaml.safe_load(export(results, tmp_path, "qrhead", top_k=4).read_text())
    assert [tuple(map(int, each.split("-"))) for each in config["attn_head_set"].split(",")] == order(results)[:4]
    named = changed(results, tmp_path, lambda c: c["record"]["model"].update(name="meta-llama/Llama-3.2-1b-instruct"))
    made = headscore.export(named, tmp_path / "n.yml", format="qrhead", top_k=2)
    assert yaml.safe_load(made.path.read_text())["model_base_class"] == "Llama-3.2-1B-Instruct" and "knows" not in made.meaning


def test_lofit_is_an_array_of_which_the_first_rows_are_taken(results: Path, tmp_path: Path) -> None:
    made = np.load(export(results, tmp_path, "lofit"))
    assert made.dtype == np.int64 and [tuple(row) for row in made[:5, :]] == order(results)[:5]


@pytest.mark.parametrize("by", ["head", "kv_head"])
def test_a_signal_turned_around_is_the_order_that_validate_tests(results: Path, tmp_path: Path, by: str) -> None:
    path = export(results, tmp_path, "csv", signal="-ent", by=by)
    found = list(pl.read_csv(path).select("layer", by).iter_rows())
    if by == "head":
        assert found == read_results(results).order("-ent")
    assert len(found) == LAYERS * (HEADS if by == "head" else KV_HEADS)
    assert json.loads(path.with_name("made.csv.headscore.json").read_text())["signal"] == "-ent"


@pytest.mark.parametrize("signal", ["out", "-task"])
def test_the_command_line_takes_a_signal_as_the_library_does(
    run_cli: Cli,
    results: Path,
    tmp_path: Path,
    signal: str,
) -> None:
    status, _, err = run_cli("export", results, f"--signal={signal}", "--out", tmp_path / "a.csv")
    assert status == 0, err
    made = headscore.export(results, tmp_path / "b.csv", signal=signal)
    assert (tmp_path / "a.csv").read_bytes() == made.path.read_bytes()


def test_the_command_line_says_what_the_format_means(run_cli: Cli, results: Path, tmp_path: Path) -> None:
    status, out, err = run_cli("export", results, "--format", "retrieval-head", "--out", tmp_path / "a.json")
    assert status == 0 and out.count("\n") == 1 and "head-selective" in out and "KV budget" in out, err
    status, out, _ = run_cli("export", results, "--format", "duo", "--out", tmp_path / "duo")
    assert status == 0 and "share of KV heads, not of the KV budget" in out
    status, _, err = run_cli("export", results, "--format", "dou", "--out", tmp_path / "x")
    assert (
        status == 2
        and err.startswith("headscore: error: --format: 'dou' is not one of csv, ")
        and not (tmp_path / "x").exists()
    )


# ------------------------------------------------------------------------------------------------------ what it is of


@pytest.mark.parametrize("format", FORMATS)
def test_every_export_says_what_it_is_of(results: Path, tmp_path: Path, format: str) -> None:
    path = export(results, tmp_path, format)
    record = yaml.safe_load((results / "config.yaml").read_text())["record"]
    found = told(path, format)
    assert (
        found["model"]["fingerprint"] == record["model"]["fingerprint"] and found["data"]["sha256"] == record["data"]["sha256"]
    )
    assert found["ranking"]["weights"] == {"out": 1.0, "ent": 0.5, "task": 1.0} and found["signal"] == "combined"
    assert found["headscore"] == headscore.__version__ and found["chosen"]["heads"] > 0
    assert found["model"]["name"] == "model", "the path of somebody's machine is not told"
    assert {each.name for each in path.parent.iterdir()} <= {path.name, f"{path.name}.headscore.json"}


def told(path: Path, format: str) -> Any:
    if path.is_dir():
        return json.loads((path / "headscore.json").read_text())
    if format == "parquet":
        return json.loads(pl.read_parquet_metadata(path)["headscore.json"])
    if format == "qrhead":
        return json.loads(path.read_text().splitlines()[0].removeprefix("# headscore: "))
    if format == "card":
        return yaml.safe_load(path.read_text().split("---\n")[1])["headscore"]
    beside = json.loads(path.with_name(f"{path.name}.headscore.json").read_text())
    assert beside["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    return beside


def test_an_export_of_groups_says_so(results: Path, tmp_path: Path) -> None:
    for path in (export(results, tmp_path, "duo", group="max"), export(results, tmp_path, "csv", by="kv_head", group="max")):
        found = told(path, "" if path.is_dir() else "csv")
        assert (found["unit"], found["of"], found["group"]) == ("kv_head", LAYERS * KV_HEADS, "max")
        assert found["chosen"] == {"heads": LAYERS * KV_HEADS}
    assert len(headscore.export(results, tmp_path / "other", format="duo").heads) == LAYERS * KV_HEADS


def test_no_folder_of_somebodys_machine_is_told(results: Path, tmp_path: Path) -> None:
    secret, name = "clients/acme", {"name": "clients/acme/runs/m"}

    def hide(config: Any) -> None:
        config["record"]["data"]["path"] = f"{secret}/q.json"
        config["record"]["model"] |= {**name, "adapter": [{"name": f"/{secret}/a"}, {"path": f"{secret}"}]}
        config["record"]["control"] = {"kind": "shuffle", "data": f"{secret}/c.json"}

    copy = changed(results, tmp_path, hide)
    for format in FORMATS:
        path = export(copy, tmp_path / format, format)
        content = b"".join(each.read_bytes() for each in path.parent.rglob("*") if each.is_file())
        assert b"clients" not in content and (b"q.json" in content or format == "parquet"), format
    hub = changed(results, tmp_path / "hub", lambda c: c["record"]["model"].update(name="meta-llama/Llama-3.2-1B"))
    assert told(export(hub, tmp_path / "hub", "csv"), "csv")["model"]["name"] == "meta-llama/Llama-3.2-1B"


# ---------------------------------------------------------------------------------------------------------------- a card


def test_a_card_has_what_a_hub_shows_and_no_verdict_that_there_is_not(results: Path, tmp_path: Path) -> None:
    text = export(results, tmp_path, "card", top_k=3).read_text()
    metadata = yaml.safe_load(text.split("---\n")[1])
    assert (
        metadata["configs"] == [{"config_name": "default", "data_files": "heads.parquet"}] and "headscore" in metadata["tags"]
    )
    first = [f"| {rank} | L{layer}H{head} |" for rank, (layer, head) in enumerate(order(results)[:4], 1)]
    assert all(line in text for line in first[:3]) and first[3] not in text
    assert "has not been tested: `headscore validate` does" in text and "random ranks of these signals would give" in text
    assert "below\\_uniform" not in text and "than uniform attention would" in text


def test_a_cards_texts_cannot_be_anything_but_texts(results: Path, tmp_path: Path) -> None:
    hostile = "<script>x</script> [a](http://b.c) | `d`\n# e ![f](g)\u202e"
    copy = changed(results, tmp_path, lambda c: (c["record"]["settings"].update(dtype=hostile), c.update(task_span=hostile)))
    text = export(copy, tmp_path, "card").read_text()
    body = text.split("---\n", 2)[2]
    assert (
        "<script" not in body.replace("\\<script", "") and "\u202e" not in text and "](http" not in body.replace("\\](http", "")
    )
    assert not any(line.startswith("# e") for line in body.splitlines())
    assert _escaped("1. a") == "1\\. a" and _escaped("- a") == "\\- a" and _escaped("www.a.b") == "www\\.a.b"
    assert yaml.safe_load(text.split("---\n")[1])["headscore"]["ranking"]["task_span"] == hostile


# -------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("format", "options", "message"),
    [
        ("duo", {"top_k": 3}, "writes all heads, of which its reader takes a share; leave out top_k"),
        ("retrieval_head", {"top_k_per_layer": 1}, "leave out top_k_per_layer"),
        ("retrieval_head", {"by": "kv_head"}, "lists query heads, and this is a ranking of groups of them; leave out by"),
        ("lofit", {"by": "kv_head"}, "lists query heads"),
        ("qrhead", {"by": "kv_head", "top_k": 1}, "lists query heads"),
        ("csv", {"top_k": 13}, "top_k: 13 is more than the 12 heads there are"),
        ("csv", {"top_k": 7, "by": "kv_head"}, "top_k: 7 is more than the 6 groups of heads there are"),
        ("csv", {"top_k_per_layer": 5}, "top_k_per_layer: 5 is more than the 4 heads that a layer has"),
        ("csv", {"top_k": 1, "top_k_per_layer": 1}, "top_k: give it or top_k_per_layer, not both"),
        ("csv", {"signal": "sinks"}, "signal sinks: .* has no such signal; it has out"),
        ("csv", {"signal": "-"}, "signal '-': is not the name of a signal"),
        ("csv", {"sink_size": 3}, "sink_size: is an option of format='duo'; leave it out"),
        ("card", {"model": "x"}, "model: is an option of format='checkpoint'; leave it out"),
        ("csv", {"group": "max"}, "group: says how groups are scored, and heads are ranked"),
        ("duo", {"by": "head"}, "by='head': format='duo' is of groups of heads"),
        ("retrieval_head", {"top_k": 1}, "^format='retrieval_head': "),
        ("csv", {"signal": "-combined"}, "signal -combined: only a signal can be turned around"),
        ("shira", {"top_k": 4}, r"r = k·d·M / \(H·d \+ M\) for all layers, but 1 of layer \d and 2 of layer \d are chosen"),
    ],
)
def test_what_a_format_cannot_say_is_refused(
    results: Path, tmp_path: Path, format: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        export(results, tmp_path, format, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", sorted(CHOOSING))
def test_formats_of_chosen_heads_ask_which(results: Path, tmp_path: Path, format: str) -> None:
    with pytest.raises(InputError, match="writes chosen heads; give top_k or top_k_per_layer"):
        headscore.export(results, tmp_path / f"x{SUFFIXES.get(format, '')}", format=format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", sorted(SUFFIXES.keys() - {"retrieval_head"}))
def test_a_wrong_suffix_is_refused(results: Path, tmp_path: Path, format: str) -> None:
    with pytest.raises(InputError, match=rf"a {format} file must end in \."):
        headscore.export(results, tmp_path / "x.wrong", format=format, **({"top_k": 1} if format in CHOOSING else {}))


def test_shira_says_which_numbers_of_heads_there_may_be(results: Path, tmp_path: Path) -> None:
    copy = changed(results, tmp_path, lambda c: c["record"]["dims"].update(hidden_size=96))
    with pytest.raises(InputError, match="is not a whole number for k = 2 heads in a layer; no k of this model gives one"):
        headscore.export(changed(results, tmp_path / "a", lambda c: c["record"]["dims"].update(hidden_size=24)), tmp_path / "s",
                         format="shira", top_k_per_layer=2)  # fmt: skip
    headscore.export(copy, tmp_path / "t", format="shira", top_k_per_layer=2)  # 2 · 8 · 96 / 128 = 12
    assert json.loads((tmp_path / "t" / "adapter_config.json").read_text())["r"] == 12


def test_a_hybrids_layers_are_no_matrix_but_a_list(results: Path, tmp_path: Path) -> None:
    heads = pl.read_parquet(results / "heads.parquet").with_columns(pl.col("layer") * 2)
    hybrid = changed(results, tmp_path, lambda c: c["record"].update(layers=[0, 2, 4]), heads)
    for format in ("duo", "retrieval_head"):
        with pytest.raises(InputError, match="layers 1, 3 have no heads in the ranking; export a list"):
            export(hybrid, tmp_path, format)
    assert set(pl.read_csv(export(hybrid, tmp_path, "csv"))["layer"]) == {0, 2, 4}
    modules = json.loads((export(hybrid, tmp_path, "shira") / "adapter_config.json").read_text())["target_modules"]
    assert {name.split(".")[2] for name in modules} == {"0", "2", "4"}


def test_an_older_ranking_is_to_be_scored_again_only_where_its_shape_is_needed(results: Path, tmp_path: Path) -> None:
    def older(config: Any) -> None:
        for key in ("dims", "projections"):
            del config["record"][key]

    copy = changed(results, tmp_path, older)
    for format in ("shira", "peft"):
        with pytest.raises(InputError, match="too old to tell the shape of the model; run headscore score on its cache"):
            export(copy, tmp_path, format)
    for format in set(FORMATS) - {"shira", "peft"}:
        export(copy, tmp_path / format, format)
    headscore.score(results.parent / "cache", copy)  # the same run, which needs no --overwrite
    export(copy, tmp_path / "again", "shira")


def test_a_signal_that_is_the_same_everywhere_orders_nothing(results: Path, tmp_path: Path) -> None:
    heads = pl.read_parquet(results / "heads.parquet").with_columns(task=pl.lit(0.0))
    with pytest.raises(InputError, match="signal task: is the same in every head"):
        export(changed(results, tmp_path, lambda c: None, heads), tmp_path, "retrieval_head", signal="task")


# ------------------------------------------------------------------------------------------------------ a stranger's record


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dims", {"layers": 3}),
        ("dims", {"layers": 3, "heads": 4, "kv_heads": 3}),
        ("dims", {"layers": 1 << 11, "heads": 1}),
        ("dims", {"layers": 3, "heads": True}),
        ("dims", [3, 4]),
        ("layers", [0, 2, 1]),
        ("layers", [0, 1]),
        ("layers", [0, 1, -2]),
        ("projections", {"query": "a"}),
        ("projections", dict.fromkeys(("query", "key", "value", "output"), "a b")),
        ("projections", dict.fromkeys(("query", "key", "value", "output"), "a.({layer})")),
        ("projections", {part: ["a", "b"] for part in ("query", "key", "value", "output")}),
        ("projections", dict.fromkeys(("query", "key", "value", "output"), "a" * 300)),
    ],
)
def test_a_record_of_no_model_is_refused(results: Path, tmp_path: Path, key: str, value: Any) -> None:
    copy = changed(results, tmp_path, lambda c: c["record"].update({key: value}))
    with pytest.raises(InputError, match=f"config.yaml: its record has no usable '{key}'; run headscore score again"):
        export(copy, tmp_path, "csv")


@pytest.mark.parametrize(
    "change",
    [
        {"layer": pl.lit(-1)},
        {"layer": pl.lit(1 << 20)},
        {"head": pl.lit(0)},
        {"head": pl.lit("x")},
        {"combined": pl.lit(float("nan"))},
        {"rank": pl.lit(None, pl.Int64)},
        {"rank": pl.lit(1)},
        {"rank": pl.len() + 1 - pl.col("rank")},
        {"rank": pl.col("rank") + 1},
        {"layer": pl.col("layer") + 0.4},
        {"kv_head": pl.lit(-1)},
        {"kv_head": pl.lit("x")},
        {"kv_head": pl.col("head")},
        {"kv_head": pl.col("kv_head") + 0.5},
    ],
)
@pytest.mark.parametrize("signal", [None, "-ent"])
def test_a_damaged_table_of_heads_is_refused(
    results: Path, tmp_path: Path, change: dict[str, pl.Expr], signal: str | None
) -> None:
    heads = pl.read_parquet(results / "heads.parquet").with_columns(**change)
    with pytest.raises(InputError, match=r"is damaged; run headscore score again"):
        export(changed(results, tmp_path, lambda c: None, heads), tmp_path, "duo", signal=signal)


@pytest.mark.parametrize("format", ["csv", "duo", "retrieval_head", "shira"])
def test_heads_of_another_shape_than_the_record_are_refused(results: Path, tmp_path: Path, format: str) -> None:
    copy = changed(results, tmp_path, lambda c: c["record"]["dims"].update(heads=8))
    with pytest.raises(InputError, match="the heads do not fit the shape in its record"):
        export(copy, tmp_path, format)
    heads = (
        pl.read_parquet(results / "heads.parquet").filter(pl.col("layer") < 2).with_columns(rank=pl.col("rank").rank("ordinal"))
    )
    with pytest.raises(InputError, match="the heads do not fit the shape in its record"):
        export(changed(results, tmp_path / "cut", lambda c: None, heads), tmp_path, format)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": [1, 2]}, "'weight' is not as headscore score writes it"),
        ({"weight": "abc"}, "'weight' is not as headscore"),
        ({"weight": {"out": "x"}}, "'weight' is not as headscore"),
        ({"fusion": "foo"}, "'fusion' is not as headscore"),
        ({"within": "row"}, "'within' is not as headscore"),
        ({"lambda_ent": float("nan")}, r"holds what JSON cannot, such as a date, a set or \.nan"),
        ({"measure": {"a": datetime.date(2020, 1, 1)}}, "holds what JSON cannot"),
        ({"record": {"samples": {"a", "b"}}}, "holds what JSON cannot"),
        ({"record": {"control": {"kind": b"x"}}}, "holds what JSON cannot"),
        ({"record": {"control": "x"}}, "'record.control' is not as headscore"),
        ({"record": {"imported": {"file": "", "format": "", "sha256": "", "whole": True}, "model": "foo"}}, "'record.model'"),
        (
            {"record": {"imported": {"file": "", "format": "", "sha256": "", "whole": True}, "data": 3}},
            "'record.data' is not",
        ),
    ],
)
def test_a_strangers_configuration_is_checked(results: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    more = change.pop("record", {})
    copy = changed(results, tmp_path, lambda c: (c.update(change), c["record"].update(more)))
    for format in ("csv", "card", "qrhead"):
        with pytest.raises(InputError, match=message):
            export(copy, tmp_path, format)


def test_paths_that_follow_no_pattern_are_listed() -> None:
    parts = ("query", "key", "value", "output")
    made: Metadata = {"dims": {"layers": 2, "heads": 4, "head_dim": 8}, "layers": [0, 10]}
    made["projections"] = [dict.fromkeys(parts, f"h.{layer}.a.q") | {"key": None} for layer in (0, 10)]
    made["projections"][1]["value"] = "other"
    record = shape_record(made)
    assert record["projections"] == {
        "query": "h.{layer}.a.q",
        "key": None,
        "value": ["h.0.a.q", "other"],
        "output": "h.{layer}.a.q",
    }
    shape = shape_of(json.loads(json.dumps(record)), "x")
    assert shape is not None and shape.layers == (0, 10) and shape.hidden_size is None
    assert shape.paths == {part: tuple(each[part] for each in made["projections"]) for part in parts}
    assert shape_of({}, "x") is None


# ------------------------------------------------------------------------------------------------------------ whole files


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_there_is_replaced_only_if_asked_and_only_if_ours(results: Path, tmp_path: Path, format: str) -> None:
    path = export(results, tmp_path, format)
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"already exists; use another out, or overwrite=True$"):
        export(results, tmp_path, format)
    assert contents(tmp_path) == before
    export(results, tmp_path, format, overwrite=True)
    assert contents(tmp_path) == before
    if path.is_dir():
        (path / "headscore.json").unlink()
        with pytest.raises(InputError, match="is a folder that headscore export did not write; use another out"):
            export(results, tmp_path, format, overwrite=True)
    else:
        path.unlink()
        path.mkdir()
        with pytest.raises(InputError, match="is not a regular file; use another out"):
            export(results, tmp_path, format, overwrite=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("format", ["duo", "csv"])
def test_a_failure_leaves_nothing_half_written(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    before = contents(export(results, tmp_path, format).parent)
    real, calls = Path.replace, [0]

    def fail(self: Path, target: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise OSError(28, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(headscore.RunError, match="cannot be written: No space left on device"):
        export(results, tmp_path, format, overwrite=True)
    now = contents(tmp_path)
    assert not any(TEMPORARY in name for name in now)
    assert now == before if format == "duo" else now.keys() == {"made.csv"}, "none stands beside what another is of"
    monkeypatch.undo()
    export(results, tmp_path, format, overwrite=True)
    assert contents(tmp_path) == before


def test_neither_a_caches_files_nor_those_of_results_are_written_over(results: Path, tmp_path: Path) -> None:
    cache = results.parent / "cache"
    before = contents(results.parent)
    for name in ("cache.json", "skipped.jsonl", "shards/x.csv", "shards"):
        with pytest.raises(InputError, match=r"(is|lies in) '[a-z.]*' of the cache .*; use another out"):
            headscore.export(results, cache / name, format="retrieval_head", overwrite=True)
    for name in ("heads.parquet", "heads.csv", "topk_global.json", "config.yaml", "charts", "control.csv", "validation.json"):
        for format in ("csv", "parquet", "retrieval_head", "duo"):
            with pytest.raises(InputError, match="is the name of a result file, in a folder of results; use another out"):
                headscore.export(results, results / name, format=format, overwrite=True)
    assert contents(results.parent) == before
    headscore.export(results, tmp_path / "heads.csv")  # where no results are


def test_a_folder_with_files_of_others_is_not_replaced(results: Path, tmp_path: Path) -> None:
    path = export(results, tmp_path, "shira")
    (path / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"holds 'notes\.txt', which this export does not write, so it is not replaced"):
        export(results, tmp_path, "shira", overwrite=True)
    with pytest.raises(InputError, match="which this export does not write"):
        export(results, tmp_path, "duo", overwrite=True)
    assert contents(tmp_path) == before
    for mark in ("{}", "[1]", '{"headscore": "0"}', "no JSON"):
        (path / "headscore.json").write_text(mark)
        with pytest.raises(InputError, match="is a folder that headscore export did not write"):
            export(results, tmp_path, "shira", overwrite=True)


def test_what_stands_beside_a_file_is_of_it(results: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.parquet"
    beside = tmp_path / "s.parquet.headscore.json"
    headscore.export(results, out, format="retrieval_head")
    headscore.export(results, out, format="parquet", overwrite=True)
    assert not beside.exists(), "it was of another file"
    out.unlink()
    headscore.export(results, out, format="retrieval_head")
    out.unlink()  # what a process leaves that was killed before the file
    headscore.export(results, out, format="retrieval_head")
    assert told(out, "retrieval_head")["of"] == LAYERS * HEADS
    beside.write_text("mine")
    with pytest.raises(InputError, match=r"headscore\.json is there, and headscore export did not write it"):
        headscore.export(results, out, format="retrieval_head", overwrite=True)
    assert beside.read_text() == "mine"


@pytest.mark.parametrize("put_aside", [True, False])
def test_what_a_killed_export_leaves_is_brought_back_or_cleared(results: Path, tmp_path: Path, put_aside: bool) -> None:
    path = export(results, tmp_path, "duo")
    before, name = contents(tmp_path), f".{path.name}.{'0' * 16}"
    shutil.copytree(path, tmp_path / f"{name}{TEMPORARY}")
    former = tmp_path / f"{name}-former{TEMPORARY}"
    path.rename(former) if put_aside else shutil.copytree(path, former)
    other = tmp_path / f".{path.name}.more.{'0' * 16}{TEMPORARY}"
    other.mkdir()
    with pytest.raises(InputError, match="already exists"):
        export(results, tmp_path, "duo")
    assert contents(tmp_path) == before and other.exists(), "that is another's"
    other.rmdir()


def test_a_living_export_is_left_alone(results: Path, tmp_path: Path) -> None:
    with whole_folder(tmp_path / "made", "headscore.json", overwrite=False) as folder:
        export(results, tmp_path, "duo")
        assert folder.exists()
        shutil.rmtree(tmp_path / "made")


@pytest.mark.parametrize(
    ("name", "message"),
    [("file.csv/x.csv", "is a file; give a folder"), ("file.csv/a/x.csv", "cannot be written"), ("x" * 300, "a shorter one")],
)
def test_a_path_that_cannot_be_is_the_users_fault(results: Path, tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file.csv").write_text("mine")
    with pytest.raises(InputError, match=message) as error:
        headscore.export(results, tmp_path / name, format="retrieval_head")
    assert "headscore-tmp" not in str(error.value)


def test_a_failure_leaves_no_folders(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    for format in ("csv", "duo"):
        with pytest.raises(headscore.RunError):
            export(results, tmp_path / "a" / "b", format)
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_may_be_there(results: Path, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    assert load_attn_pattern(export(results, tmp_path, "duo"))[0].size == LAYERS * KV_HEADS


def test_torch_is_not_loaded(results: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    program = (
        "import sys, headscore\n"
        f"headscore.export({str(results)!r}, {str(tmp_path / 's')!r}, format='shira', top_k_per_layer=1)\n"
        f"headscore.import_list(headscore.export({str(results)!r}, {str(tmp_path / 'l.npy')!r}, format='lofit').path, "
        f"{str(tmp_path / 'i')!r}, format='lofit')\n"
        "print([name for name in ('torch', 'transformers', 'safetensors', 'altair') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_safetensors_file_is_one(results: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load

    path = export(results, tmp_path, "shira") / "adapter_model.safetensors"
    read = load(path.read_bytes())
    assert len(read) == 4 * LAYERS and {each.dtype.name for each in read.values()} == {"float32", "int32"}
    assert np.load(io.BytesIO((export(results, tmp_path / "p", "peft") / "masks.npz").read_bytes())).files
