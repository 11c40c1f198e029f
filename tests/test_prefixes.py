import json
import logging
from pathlib import Path

import numpy as np
import pytest
import tiny
from eager import EagerModel
from hypothesis import given
from hypothesis import strategies as st
from parity import arrays_of, assert_parity, assert_same

import headscore
from headscore.capture.recording import prefixes, recorder
from headscore.capture.recording.prefixes import prompt_groups

prompts_under_templates = st.lists(
    st.tuples(
        st.sampled_from([[], [1] * 9, [1] * 9 + [2] * 12, [3] * 30]), st.lists(st.integers(0, 3), min_size=1, max_size=12)
    ),
    max_size=20,
).map(lambda pairs: [np.array(template + rest, np.int32) for template, rest in pairs])


overheads = st.sampled_from([0, 5, 60])


def saved(prefix: int, prompts: int, overhead: int) -> float:
    """The tokens that a group saves by what it costs: its prefix once, two passes, and a share of the prefix per prompt."""
    return prefix * prompts * (1 - prefixes.PREFIX_COST) - prefix - 2 * overhead


@given(prompts_under_templates, overheads)
def test_groups_share_their_prefix_and_hold_every_prompt_once(prompts: list[np.ndarray], overhead: int) -> None:
    groups = prompt_groups(prompts, True, overhead)
    assert sorted(i for group in groups for same in group.members for i in same) == list(range(len(prompts)))
    for group in groups:
        assert group.prefix == 0 or group.prefix >= prefixes.MIN_PREFIX
        members = [prompts[i] for same in group.members for i in same]
        assert len({member[: group.prefix].tobytes() for member in members}) == 1
        assert all(len(member) > group.prefix for member in members), "the last token of each is still to be run"
        for same in group.members:
            assert len({prompts[i].tobytes() for i in same}) == 1
        assert len({prompts[same[0]].tobytes() for same in group.members}) == len(group.members), "identical ones are together"
    longest = [max(len(prompts[i]) for same in group.members for i in same) for group in groups]
    assert longest == sorted(longest, reverse=True)
    assert sum(group.prefix == 0 for group in groups) <= 1


@given(prompts_under_templates, overheads)
def test_no_prefixes_of_one_length_save_more_than_the_groups(prompts: list[np.ndarray], overhead: int) -> None:
    of_groups = [saved(g.prefix, len(g.members), overhead) for g in prompt_groups(prompts, True, overhead) if g.prefix]
    assert sum(of_groups) >= 0
    different = {prompt.tobytes(): prompt.tolist() for prompt in prompts}.values()
    for tokens in range(prefixes.MIN_PREFIX, 43):
        longer = [tuple(prompt[:tokens]) for prompt in different if len(prompt) > tokens]
        others = (saved(tokens, longer.count(start), overhead) for start in set(longer))
        assert sum(of_groups) >= sum(amount for amount in others if amount > 0) - 1e-9, tokens


def test_few_prompts_of_a_rare_template_stay_with_those_that_they_share_less_with() -> None:
    common = [np.array([1] * 20 + [2] * 40 + [i, j], np.int32) for i in range(6) for j in range(6)]
    rare = [np.array([1] * 20 + [3] * 9 + [i], np.int32) for i in range(2)]
    many = [np.array([1] * 20 + [4 + i], np.int32) for i in range(20)]
    groups = prompt_groups([*common, *rare, *many], True, 60)
    assert [(group.prefix, len(group.members)) for group in groups] == [(60, 36), (20, 22)]


def test_what_does_not_pay_for_a_pass_of_its_own_is_run_whole() -> None:
    prompts = [np.array([1] * 30 + [i], np.int32) for i in range(5)]
    assert [group.prefix for group in prompt_groups(prompts, True, 0)] == [30]
    assert [group.prefix for group in prompt_groups(prompts, True, 60)] == [0]


@given(prompts_under_templates)
def test_without_sharing_there_is_one_group(prompts: list[np.ndarray]) -> None:
    groups = prompt_groups(prompts, False, 0)
    assert [group.prefix for group in groups] == [0] * bool(prompts)


def test_prompts_of_two_templates_are_grouped_by_them() -> None:
    one, other = [5] * 20, [5] * 9 + [6] * 30
    prompts = [np.array([*template, *end], np.int32) for end in ([1], [2], [3, 4]) for template in (one, other)]
    groups = prompt_groups([*prompts, np.array([9], np.int32)], True, 0)
    assert [(group.prefix, group.members) for group in groups] == [(39, [[1], [3], [5]]), (20, [[0], [2], [4]]), (0, [[6]])]


@pytest.fixture(scope="module")
def long_prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows whose template is longer than the window of the windowed models, some of them the same, one alone."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "template.txt").write_text("Here are some examples of what is asked. " * 3 + "{question}")
    ends = ["Why?", "Why is it so?", "Why?", "Where do all of the birds go in the winter?", "x"]
    (folder / "d.jsonl").write_text("\n".join(json.dumps({"question": end}) for end in ends))
    return folder


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_prefixes_longer_than_a_window_are_shared_exactly(name: str, long_prompts: Path, tmp_path: Path) -> None:
    folder = tiny.save(tiny.build(tiny.CONFIGS[name]()), tmp_path / "model")
    options = {"data": str(long_prompts / "d.jsonl"), "template": long_prompts / "template.txt", "queries": "all_tokens"}
    headscore.capture(tmp_path / "c", model=str(folder), **options)
    assert_parity(tmp_path / "c", EagerModel(folder))


def test_prefixes_are_run_once_and_identical_prompts_too(
    llama: Path, long_prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, run = recorder.Recorder.start, []

    def start(self: recorder.Recorder, lengths: object, prefix: prefixes.Prefix | None = None, **options: bool) -> None:
        run.append((len(lengths), int(lengths.sum()), prefix.tokens if prefix else 0))
        real(self, lengths, prefix, **options)

    monkeypatch.setattr(recorder.Recorder, "start", start)
    options = {"data": str(long_prompts / "d.jsonl"), "template": long_prompts / "template.txt"}
    lengths = headscore.capture(tmp_path / "c", model=str(llama), **options)["tokens"].to_list()
    (one, prefix_tokens, _), (count, tokens, after) = run[-2:]
    assert (one, count, after) == (1, 4, prefix_tokens), "the last two runs are the prefix and the four different prompts"
    assert prefix_tokens > 20 and tokens == sum(lengths) - lengths[0] - 4 * prefix_tokens


def test_a_model_that_cannot_take_a_prefix_runs_every_prompt_whole(
    llama: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(prefixes, "_before", lambda prefix, states: states)  # as if it had no memory of it
    with caplog.at_level(logging.WARNING, "headscore"):
        headscore.capture(tmp_path / "c", model=str(llama), max_samples=24, shard_size=10, queries="all_tokens", seed=7)
    assert "what prompts share is run again for each of them" in caplog.text
    assert headscore.inspect(tmp_path / "c")["self_check"]["shared_prefixes"] is False
    assert_same(arrays_of(cache), arrays_of(tmp_path / "c"), exactly=False)
