"""The law of a capture: what is stored of a prompt is what a fresh model's own eager attention gives for it alone.

In whatever batch, order, process, with and without shared prefixes, and on both sides of every length at which a model begins
to do something else. Held for every kind of model in tests/architectures.py.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from architectures import ARCHITECTURES, LENGTHS, MOST, SWITCH, prompts, stored_in_full
from eager import EagerModel
from parity import largest_differences

import headscore
from headscore.capture.inputs.lengths import length_rules
from headscore.data.cache.folder import open_cache

REFUSED = ("deepseek_v4", "hrm_text", "mamba", "rwkv")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prompts in an order that is none of length, one of them twice."""
    path = tmp_path_factory.mktemp("data") / "d.jsonl"
    texts = prompts()
    order = np.random.default_rng(0).permutation(len(texts)).tolist()
    rows = [{"text": texts[i], "spans": [{"name": "question", "start": 1, "end": len(texts[i])}]} for i in [*order, order[3]]]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_the_prompts_are_as_long_as_they_should_be() -> None:
    found = [len(ids) for ids in tiny.tokenizer()(prompts())["input_ids"]]
    assert found == list(LENGTHS)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in REFUSED])
def test_every_prompt_has_the_values_that_it_has_alone(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.save(tiny.build(ARCHITECTURES[name].config()), tmp_path / "model")
    options: dict[str, Any] = {"model": str(folder), "data": str(data), "queries": "all_tokens", "shard_size": 6}
    with stored_in_full():
        headscore.capture(tmp_path / "one", **options)
        monkeypatch.setenv("WORLD_SIZE", "2")
        for rank in ("0", "1"):
            monkeypatch.setenv("RANK", rank)
            headscore.capture(tmp_path / rank, **options, share_prefixes=False, batch_size=3, batch_tokens=10_000)
        monkeypatch.delenv("WORLD_SIZE")
        headscore.merge([tmp_path / "0", tmp_path / "1"], tmp_path / "two")
        eager = EagerModel(folder, fresh=True)
        for cache in (tmp_path / "one", tmp_path / "two"):
            worst = largest_differences(cache, eager)
            assert worst.keys() >= {"last_token/attention", "all_tokens/attention", "all_tokens/entropy"}
            assert max(worst.values()) <= MOST, (cache.name, worst)
    check = open_cache(tmp_path / "one").metadata["self_check"]
    assert check["checked_tokens"] == check["longest_tokens"] == max(LENGTHS)
    rules = length_rules(eager.model.config)
    assert ("LongRoPE" in name) == (rules.switches == (SWITCH,)) and ("dynamic" not in name or rules.alone_beyond == SWITCH)
    between = [limit for limit in rules.limits if min(LENGTHS) <= limit < max(LENGTHS)]
    assert {length for limit in between for length in (limit, limit + 1)} <= set(check["lengths"])
