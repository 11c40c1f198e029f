"""Heads whose scores are known exactly, planted in tiny models."""

import itertools
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tiny
import torch
from transformers import PreTrainedModel

import headscore
from headscore.data.cache.folder import open_cache
from headscore.data.cache.reader import Shard

HEADS, HEAD_DIM = 4, 8


def captured(model: PreTrainedModel, folder: Path, **options: object) -> Path:
    tiny.save(model, folder / "model")
    headscore.capture(folder / "cache", model=str(folder / "model"), max_samples=10, **options)
    return folder / "cache"


def llama() -> PreTrainedModel:
    return tiny.build(tiny.CONFIGS["llama"]())


def head_rows(head: int) -> slice:
    return slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)


def lines(cache: Path, layer: int, head: int, **options: object) -> pl.DataFrame:
    return headscore.scan_cache(cache, **options).filter(layer=layer, head=head).sort("sample").collect()


def test_a_head_that_writes_nothing(tmp_path: Path) -> None:
    model = llama()
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[:, head_rows(2)] = 0
    cache = captured(model, tmp_path)
    assert lines(cache, 1, 2, head_output="result")["out"].to_list() == [0.0] * 10
    assert (lines(cache, 1, 2)["out"] > 0).all(), "z itself is not zero"
    assert (lines(cache, 1, 1, head_output="result")["out"] > 0).all()


@pytest.mark.parametrize("query_mode", ["last_token", "all_tokens"])
def test_a_head_that_looks_everywhere_alike(tmp_path: Path, query_mode: str) -> None:
    model = llama()
    with torch.no_grad():
        model.model.layers[2].self_attn.q_proj.weight[head_rows(3)] = 0
    cache = captured(model, tmp_path, queries=query_mode)
    found = lines(cache, 2, 3, score_query_mode=query_mode)
    with Shard(open_cache(cache).shards[0]) as shard:
        offsets, question = shard.offsets(), shard.read("tokens/span") & 1
    for i, (start, stop) in enumerate(itertools.pairwise(offsets)):
        n, inside = stop - start, np.flatnonzero(question[start:stop])
        if query_mode == "last_token":
            entropy, mass = math.log(n), len(inside) / n
        else:  # query position i (1-based) gives 1/i to each of its first i keys
            entropy = sum(math.log(k) for k in range(1, n + 1)) / n
            mass = sum(sum(1 / k for k in range(j + 1, n + 1)) / n for j in inside)
        assert found["ent"][i] == pytest.approx(-entropy, abs=2e-3)
        assert found["task"][i] == pytest.approx(mass, abs=1e-3)


def test_a_head_that_looks_at_the_first_token_alone(tmp_path: Path) -> None:
    """<s> gets an embedding of its own, and head 0 reads q and k so that its key dominates every other."""
    model = llama()
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 0
        model.model.embed_tokens.weight[0] = 0
        model.model.embed_tokens.weight[0, 0] = 1  # only <s> has the first feature
        model.model.embed_tokens.weight[1:, 1] = 3  # all others share the second
        attention.q_proj.weight[head_rows(0)] = 0
        attention.k_proj.weight[head_rows(0)] = 0
        # the lowest-frequency pair of the rotary embedding hardly turns over a prompt's length
        attention.q_proj.weight[HEAD_DIM // 2 - 1, 1] = 100
        attention.k_proj.weight[HEAD_DIM // 2 - 1, 0] = 100
    cache = captured(model, tmp_path)
    with Shard(open_cache(cache).shards[0]) as shard:
        sinks = shard.read("last_token/attention", 0)[0, shard.offsets()[:-1]]
    np.testing.assert_allclose(sinks, 1, atol=1e-3)
    found = lines(cache, 0, 0)
    np.testing.assert_allclose(found["ent"], 0, atol=1e-3)
    np.testing.assert_allclose(found["task"], 0, atol=1e-3)


def test_permuting_heads_permutes_scores(tmp_path: Path) -> None:
    """Swapping whole kv groups, and the heads inside them, moves every head's scores along."""
    model = llama()
    plain = captured(model, tmp_path / "plain")
    order = [3, 2, 0, 1]  # new head i is old head order[i]; kv groups (0,1) and (2,3) change places
    rows = torch.cat([torch.arange(h * HEAD_DIM, (h + 1) * HEAD_DIM) for h in order])
    kv_rows = torch.cat([torch.arange(g * HEAD_DIM, (g + 1) * HEAD_DIM) for g in (1, 0)])
    attention = model.model.layers[1].self_attn
    with torch.no_grad():
        attention.q_proj.weight.copy_(attention.q_proj.weight[rows].clone())
        attention.k_proj.weight.copy_(attention.k_proj.weight[kv_rows].clone())
        attention.v_proj.weight.copy_(attention.v_proj.weight[kv_rows].clone())
        attention.o_proj.weight.copy_(attention.o_proj.weight[:, rows].clone())
    permuted = captured(model, tmp_path / "permuted")

    one, other = headscore.score(plain), headscore.score(permuted)
    for before, after, columns in (
        (one.raw, other.raw, ["out_raw", "ent_raw", "task_raw"]),
        (one.norm, other.norm, ["out_z", "ent_z", "task_z"]),
        (one.combined, other.combined, ["combined"]),
    ):
        for layer in range(3):
            old = before.filter(layer=layer).select(columns).to_numpy()
            new = after.filter(layer=layer).select(columns).to_numpy()
            np.testing.assert_allclose(new, old[order] if layer == 1 else old, rtol=2e-3, atol=2e-3)
