import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from headscore.capture.model import device
from headscore.capture.recording import reductions


def naive_patterns(query: Tensor, key: Tensor, softmax: reductions.Softmax) -> Tensor:
    """[B,H,T,T] in float64, K repeated, one obvious step at a time."""
    key, mask = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1), softmax.mask
    logits = query.double() @ key.double().transpose(2, 3) * softmax.scaling
    if softmax.softcap is not None:
        logits = softmax.softcap * torch.tanh(logits / softmax.softcap)
    tokens = query.shape[2]
    allowed = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    if mask is not None and mask.dtype == torch.bool:
        allowed = allowed & mask
    elif mask is not None:
        logits = logits + mask
    logits = logits.masked_fill(~allowed, -torch.inf)
    if softmax.sinks is not None:
        sinks = softmax.sinks.double().expand(*logits.shape[:-1], 1)
        return torch.cat([logits, sinks], -1).softmax(-1)[..., :-1]
    return logits.softmax(-1)


def window(tokens: int, size: int) -> Tensor:
    position = torch.arange(tokens)
    return (position[:, None] - position < size)[None, None]


shapes = st.tuples(st.integers(1, 3), st.sampled_from([(1, 1), (4, 2), (6, 1), (4, 4)]), st.integers(1, 20))


@given(
    shapes,
    st.sampled_from([0, 1, 6]),
    st.sampled_from([None, "window", "bias"]),
    st.sampled_from([None, 0.5, 30.0]),
    st.sampled_from([None, "per head", "per query"]),
    st.integers(0, 1000),
    st.sampled_from([1, 700, 1 << 20]),
)
def test_reductions_equal_the_full_patterns(
    shape: tuple[int, tuple[int, int], int],
    prefix: int,
    kind: str | None,
    softcap: float | None,
    sink: str | None,
    seed: int,
    block_bytes: int,
) -> None:
    """The queries of a prefix that was run before are left out of what is reduced, its keys are not."""
    batch, (heads, kv_heads), suffix = shape
    tokens = prefix + suffix
    torch.manual_seed(seed)
    query, key = torch.randn(batch, heads, tokens, 8), torch.randn(batch, kv_heads, tokens, 8)
    value = torch.randn(batch, kv_heads, tokens, 5)
    lengths = torch.randint(1, suffix + 1, (batch,))
    mask = {None: None, "window": window(tokens, 3), "bias": torch.randn(1, heads, tokens, tokens)}[kind]
    sinks = {None: None, "per head": torch.randn(1, heads, 1, 1), "per query": torch.randn(batch, heads, tokens, 1)}[sink]
    softmax = reductions.Softmax(0.7, mask, softcap, sinks)
    full = naive_patterns(query, key, softmax)[:, :, prefix:]
    query, mask = query[:, :, prefix:], None if mask is None else mask[:, :, prefix:]
    softmax = replace(softmax, mask=mask, sinks=sinks[:, :, prefix:] if sinks is not None and sink == "per query" else sinks)

    rows = reductions.last_token_patterns(query, key, lengths, softmax)
    padding = torch.arange(tokens) >= prefix + lengths[:, None]
    key, stored = (values.masked_fill(padding[:, None, :, None], torch.nan) for values in (key, value))
    query = query.masked_fill(padding[:, None, prefix:, None], torch.nan)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            device.PROFILES, "cpu", replace(device.PROFILES["cpu"], block_bytes=block_bytes)
        )  # down to one query row a block
        attention, entropy, z = reductions.all_token_patterns(query, key, stored, lengths, softmax)
    assert z is not None
    for b, length in enumerate(lengths.tolist()):
        real = full[b, :, :length]
        torch.testing.assert_close(rows[b].double(), real[:, -1], atol=1e-6, rtol=0)
        torch.testing.assert_close(attention[b].double(), real.sum(1), atol=1e-5, rtol=0)
        torch.testing.assert_close(entropy[b].double(), torch.special.entr(real).sum(-1).sum(1), atol=2e-5, rtol=1e-6)
        expected = real @ value[b].double().repeat_interleave(heads // kv_heads, 0)
        torch.testing.assert_close(z[b, :length].double(), expected.transpose(0, 1), atol=1e-5, rtol=0)
        assert not rows[b, :, prefix + length :].any(), "padding got attention"


def test_whole_patterns_are_reduced_to_the_same() -> None:
    """What the eager way takes from the model's own patterns is what the recorded way computes."""
    torch.manual_seed(0)
    query, key, lengths = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 12, 8), torch.tensor([9, 4])
    softmax = reductions.Softmax(0.7)
    logits = (query @ key.repeat_interleave(2, dim=1).transpose(2, 3) * 0.7).masked_fill(
        torch.arange(12) > torch.arange(9)[:, None] + 3, -torch.inf
    )
    patterns = logits.softmax(-1)
    patterns[1, :, 4:] = torch.nan  # what stands at padding may be anything
    attention, entropy, _ = reductions.all_token_patterns(query, key, None, lengths, softmax)
    found = reductions.sums_of(patterns, lengths)
    torch.testing.assert_close(found[0], attention, atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1], entropy, atol=1e-5, rtol=0)
    rows = reductions.last_token_patterns(query, key, lengths, softmax)
    torch.testing.assert_close(reductions.last_of(patterns, lengths), rows, atol=1e-6, rtol=0)


@given(st.integers(0, 1000), st.sampled_from([(24, 4, 6), (8, 2, 16), (5, 1, 5)]))
def test_result_norms_equal_the_norms_of_the_results(seed: int, sizes: tuple[int, int, int]) -> None:
    model_dim, heads, head_dim = sizes  # model_dim may be smaller than head_dim
    torch.manual_seed(seed)
    z, weight = torch.randn(2, 3, heads, head_dim), torch.randn(model_dim, heads * head_dim)
    results = torch.einsum("bthd,mhd->bthm", z.double(), weight.double().unflatten(1, (heads, head_dim)))
    found = reductions.result_norms(z, reductions.result_factors(weight, heads))
    torch.testing.assert_close(found.double(), results.norm(dim=-1), rtol=1e-5, atol=1e-6)


def test_result_norm_keeps_precision_where_a_gram_matrix_would_not() -> None:
    weight = torch.tensor([[1.0, 1.0], [0.0, 1e-5]])  # nearly dependent columns: W z is tiny for z = (1, -1)
    z = torch.tensor([1.0, -1.0]).reshape(1, 1, 1, 2)
    found = reductions.result_norms(z, reductions.result_factors(weight, 1)).item()
    assert found == pytest.approx(1e-5, rel=1e-3)


def test_zero_projection_has_result_norm_exactly_zero() -> None:
    weight = torch.randn(6, 8)
    weight[:, 4:] = 0
    norms = reductions.result_norms(torch.randn(1, 5, 2, 4), reductions.result_factors(weight, 2))
    assert (norms[..., 0] > 0).all() and (norms[..., 1] == 0).all()


def test_sums_ignore_what_stands_at_padding() -> None:
    values = torch.tensor([[[1.0], [3.0], [math.nan]], [[2.0], [4.0], [9.0]]])
    lengths = torch.tensor([2, 3])
    assert reductions.sum_over_tokens(values, lengths).tolist() == [[4.0], [15.0]]
    assert reductions.at_last_token(values, lengths).tolist() == [[3.0], [9.0]]


def test_half_precision_input_is_reduced_in_float32() -> None:
    query, key = torch.randn(1, 2, 50, 16).bfloat16(), torch.randn(1, 1, 50, 16).bfloat16()
    lengths = torch.tensor([50])
    rows = reductions.last_token_patterns(query, key, lengths, reductions.Softmax(0.25))
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows, naive_patterns(query, key, reductions.Softmax(0.25))[:, :, -1].float(), atol=1e-6, rtol=0)
    assert reductions.output_norms(query).dtype == torch.float32


def test_blocks_without_memory_of_their_own_or_compiled_are_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 12, 8), torch.randn(2, 2, 12, 5)
    given = query, key, value, torch.tensor([9, 4]), reductions.Softmax(0.7, None, 2.0, torch.randn(1, 4, 1, 1))
    expected = reductions.all_token_patterns(*given)
    real, seen = reductions._reduced, []
    monkeypatch.setattr(reductions, "_faults", [])
    monkeypatch.setattr(reductions, "_compile", lambda: lambda block: (seen.append(1), real(block._replace(memory=None)))[1])
    for one, other in zip(expected, reductions.all_token_patterns(*given, compiled=True), strict=True):
        torch.testing.assert_close(one, other)
    assert seen, "as torch would compile it, with temporaries of its own"

    def fails(*_: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(reductions, "_compile", lambda: fails)
    for _ in range(2):
        assert all(map(torch.equal, expected, reductions.all_token_patterns(*given, compiled=True)))
    assert caplog.text.count("goes on without torch.compile, which fails: no compiler") == 1


def test_a_block_can_be_traced_in_one_piece() -> None:
    """What torch.compile needs; with its compiler for GPUs it runs only there."""
    traced = torch.compile(reductions._reduced, dynamic=True, fullgraph=True, backend="eager")
    for tokens in (9, 7):
        rows, key, value = torch.randn(2, 4, tokens, 8), torch.randn(4, 8, tokens + 3), torch.randn(4, tokens + 3, 5)
        later = torch.arange(tokens) > torch.arange(tokens)[:, None]
        counted = torch.ones(2, 1, tokens, dtype=torch.bool)
        block = reductions.Block(rows, key, value, counted, later, mask=None, sinks=None, softcap=None, memory=None)
        for one, other in zip(reductions._reduced(block), traced(block), strict=True):
            torch.testing.assert_close(one, other)
