"""A few architectures of tests/architectures.py, one for each thing that is special; the page has all of them."""

import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from architectures import ARCHITECTURES, DOCS, MOST, outcome
from torch import nn

import headscore
from headscore.capture.model import models
from headscore.capture.model.projections import output_weight, projection_error
from headscore.data.errors import InputError

KINDS = {  # and the way that they should take
    "bitnet": "recorded",  # a norm before W_O
    "deepseek_v3": "recorded",  # MLA: values of another width than keys
    "falcon": "eager",  # multi-query
    "falcon, ALiBi": "eager",
    "gpt_bigcode": "recorded",  # multi-query
    "gpt_neo": "eager",  # windowed layers
    "granite_swa": "eager",  # its own eager attention shows patterns without the sinks, so the self-check fails first
    "jamba": "recorded",  # layers without attention
    "openai-gpt": "eager",  # does not take a kv_cache
    "phi": "recorded",  # biases, parallel blocks
    "qwen3_next": "recorded",  # heads that are gated before W_O
}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_captured_equals_the_models_own_eager_attention(name: str, tmp_path: Path) -> None:
    found = outcome(name, tmp_path, dtypes=())
    assert (found.way, found.refused) == (KINDS[name], "")
    for ending in ("attention", "output_norm", "result_norm"):
        worst = found.worst(ending)
        assert worst is not None and worst <= MOST, (ending, found.differences)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hrm_text", "hrm_text: runs attention layer 0 after layer 2, or more than once"),
        ("mamba", "mamba: has no attention layer"),
        ("rwkv", "rwkv: has no attention layer"),
        ("deepseek_v4", "deepseek_v4: layer 0: attends to other things than tokens"),
    ],
)
def test_what_cannot_be_captured_is_refused_by_name(name: str, said: str, tmp_path: Path) -> None:
    assert said in outcome(name, tmp_path, dtypes=()).refused
    assert not (tmp_path / "fp32").exists()


def test_where_the_output_projection_cannot_be_split_there_are_no_result_norms(tmp_path: Path) -> None:
    model = tiny.save(tiny.build(ARCHITECTURES["jetmoe"].config()), tmp_path / "model")
    headscore.capture(tmp_path / "c", model=str(model), max_samples=4)
    assert headscore.inspect(tmp_path / "c", verify=True)["attention"]["result_norms"] is False
    headscore.score(tmp_path / "c", tmp_path / "r")
    with pytest.raises(InputError, match=r"head_output='result': .* cannot be split by heads; use head_output='z'"):
        headscore.score(tmp_path / "c", tmp_path / "r2", head_output="result")


def test_rows_that_sinks_leave_less_than_1_pass_verification(tmp_path: Path) -> None:
    model = tiny.save(tiny.build(tiny.CONFIGS["gpt_oss"]()), tmp_path / "model")
    headscore.capture(tmp_path / "c", model=str(model), max_samples=4, queries="all_tokens")
    facts = headscore.inspect(tmp_path / "c", verify=True)
    assert facts["attention"] == {"way": "recorded", "full_rows": False, "result_norms": True} and not facts["damaged"]


class Normed(nn.Linear):
    """Linear, but not in each head alone: what it gives depends on the norm of all."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return super().forward(values / values.norm(dim=-1, keepdim=True).clamp(min=1e-6))


def test_results_of_heads_must_add_up_to_what_the_projection_gives() -> None:
    z = torch.randn(5, 4, 8)
    assert projection_error(nn.Linear(32, 24), z) < 1e-5 and projection_error(Normed(32, 24), z) > 0.1


class Packed(nn.Module):
    """A linear layer of 8-bit weights, as quantisation libraries make them: it shows no matrix, and rounds nothing else."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.in_features, self.bias = layer.in_features, layer.bias
        self.scale = float(layer.weight.detach().abs().max()) / 127
        self.packed = nn.Parameter((layer.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(values, self.packed * self.scale, self.bias)


def test_a_quantised_projection_is_asked_for_its_weights() -> None:
    packed = Packed(nn.Linear(32, 24))
    torch.testing.assert_close(output_weight(packed, torch.float32), packed.packed * packed.scale, atol=1e-6, rtol=0)
    assert projection_error(packed, torch.randn(5, 4, 8)) < 1e-5


def test_a_model_whose_projections_are_quantised_is_recorded(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = models.load_model

    def quantised(*of: Any, **options: Any) -> Any:
        model = real(*of, **options)
        for layer in model.layers:
            layer.self_attn.o_proj = Packed(layer.self_attn.o_proj)
        return model

    monkeypatch.setattr(models, "load_model", quantised)
    headscore.capture(tmp_path / "c", model=str(llama), max_samples=4)
    facts = headscore.inspect(tmp_path / "c", verify=True)
    assert facts["attention"] == {"way": "recorded", "full_rows": True, "result_norms": True}
    assert max(facts["self_check"]["largest_difference"].values()) < 1e-3


def test_the_page_has_every_architecture_and_none_is_further_from_eager_than_it_may() -> None:
    line = re.compile(r"^\| (.+?) \| (.*?) \| (recorded|eager|refused) \| (?:(?:yes|no) )?\|(.*)\|$", re.M)
    lines = line.findall(DOCS.read_text())
    assert [name for name, *_ in lines] == list(ARCHITECTURES)
    assert len({ARCHITECTURES[name].kind for name, _, way, _ in lines if way != "refused"}) >= 40
    for name, special, way, numbers in lines:
        assert special == ARCHITECTURES[name].special
        cells = [cell.strip() for cell in numbers.split("|")]
        assert all(float(cell) <= MOST for cell in cells[:3] if cell not in ("–", "")), name
        assert way == "refused" or cells[0]
