"""Heads are taken out where the output projection begins, and nowhere else; all else stays as it is."""

import contextlib
import dataclasses
from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest
import tiny
import torch
from ablations import MODELS, evaluator, questions
from eager import output_projections
from torch import Tensor
from transformers import PreTrainedModel

import headscore
from headscore.capture.ablating.ablation import attention_layers, gates_without
from headscore.capture.ablating.readings import Outcomes
from headscore.capture.inputs.questions import Question
from headscore.data.prompts.answers import AnswerKind

HEADS, HEAD_DIM, LAYERS = 4, 8, 3
ALL_HEADS = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]


def logits(model: PreTrainedModel, tokens: int = 30, batch: int = 2) -> Tensor:
    ids = torch.randint(2, 590, (batch, tokens), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False).logits


def columns(head: int) -> slice:
    return slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)


@pytest.mark.parametrize("name", MODELS)
def test_zero_is_what_zeroed_columns_of_the_output_projection_give(name: str) -> None:
    """To the last bit, with any set of heads; and afterwards the model is as it was."""
    model = MODELS[name]()
    heads = [(0, 1), (0, 3), (2, 0)]
    before = logits(model)
    with headscore.ablated(model, heads):
        ablated = logits(model)
    assert torch.equal(logits(model), before) and not torch.equal(ablated, before)
    assert not any(module._forward_pre_hooks for module in model.modules())
    with torch.no_grad():
        for layer, head in heads:
            projection = output_projections(model)[layer]
            weight = projection.weight.T if type(projection).__name__ == "Conv1D" else projection.weight
            width = weight.shape[1] // HEADS
            weight[:, head * width : (head + 1) * width] = 0
    assert torch.equal(logits(model), ablated)


def test_a_head_that_writes_nothing_is_not_missed() -> None:
    model = MODELS["llama"]()
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[:, columns(2)] = 0
    before = logits(model)
    with headscore.ablated(model, [(1, 2)]):
        assert torch.equal(logits(model), before)
    with headscore.ablated(model, []):
        assert torch.equal(logits(model), before)


def test_without_any_head_attention_writes_its_bias() -> None:
    model = MODELS["gpt2"]()
    written: list[Tensor] = []
    for projection in output_projections(model):
        torch.nn.init.normal_(projection.bias)
        projection.register_forward_hook(lambda _, __, output: written.append(output))
    with headscore.ablated(model, ALL_HEADS):
        logits(model)
    for projection, output in zip(output_projections(model), written[-LAYERS:], strict=True):
        assert torch.equal(output, projection.bias.expand_as(output))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_mean_of_a_constant_head_changes_nothing(name: str) -> None:
    model = MODELS[name]()
    with torch.no_grad():
        if name == "llama":  # its values have no bias: the constant is 0
            model.model.layers[1].self_attn.v_proj.weight[columns(1)] = 0
        else:
            values = slice(2 * 24 + 2 * 6, 2 * 24 + 4 * 6)
            model.transformer.h[1].attn.c_attn.weight[:, values] = 0
            model.transformer.h[1].attn.c_attn.bias[values] = 0.5
    means = headscore.mean_outputs(model, [[5, 9, 4, 8], [7, 3]])
    before = logits(model)
    for heads in ([(1, 2)], [(1, 3)]):
        with headscore.ablated(model, heads, how="mean", means=means):
            torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)
    with headscore.ablated(model, [(1, 0)], how="mean", means=means):
        assert not torch.allclose(logits(model), before, rtol=1e-3)


def test_means_are_those_of_all_real_positions() -> None:
    """Padded batches of the evaluator give what prompts alone give, and each head has its own."""
    model, asked = MODELS["llama"](), questions(6)
    prompts = [question.sequences[0][: question.prompt].tolist() for question in asked]
    entered: list[Tensor] = []
    hook = output_projections(model)[1].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0][0]))
    means = headscore.mean_outputs(model, prompts)
    hook.remove()
    z = torch.cat(entered[1:]).double()  # the first is the look for attention layers
    torch.testing.assert_close(means[1].double(), z.mean(0).view(HEADS, HEAD_DIM), rtol=1e-5, atol=1e-6)
    several = evaluator(model, asked)
    several.find_means()
    for layer, mean in means.items():
        torch.testing.assert_close(several.means[layer], mean, rtol=1e-4, atol=1e-5)  # type: ignore[index]


def test_hooks_are_gone_after_an_error() -> None:
    model = MODELS["llama"]()
    before = logits(model)
    with pytest.raises(KeyError), headscore.ablated(model, [(0, 0)]):
        raise KeyError
    assert torch.equal(logits(model), before)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_heads_may_be_given_as_frames_of_heads_or_of_groups() -> None:
    model = MODELS["llama"]()
    with headscore.ablated(model, [(2, 2), (2, 3)]):
        wanted = logits(model)
    for frame in (
        pl.DataFrame({"layer": [2, 2], "head": [2, 3], "kv_head": [1, 1]}),
        pl.DataFrame({"layer": [2], "kv_head": [1]}),
    ):
        with headscore.ablated(model, frame):
            assert torch.equal(logits(model), wanted)


def test_layers_without_attention_are_not_said_to_have_heads() -> None:
    model = MODELS["llama"]()
    between = {layer: known for layer, known in attention_layers(model).items() if layer != 1}
    with pytest.raises(headscore.InputError, match=r"no head 0 in layer 1; it has layers 0, 2$"):
        gates_without([[(1, 0)]], between)


def test_a_model_that_fails_is_told_in_one_line() -> None:
    model = MODELS["llama"]()
    model.model.layers[0].forward = lambda *_, **__: {}["nothing here"]
    with pytest.raises(headscore.RunError, match=r"^llama: fails on 4 tokens: KeyError"):
        attention_layers(model)


@pytest.mark.parametrize(
    ("heads", "options", "message"),
    [
        ([(3, 0)], {}, "heads: the model has no head 0 in layer 3; it has layers 0-2"),
        ([(0, 4)], {}, "heads: the model has no head 4 in layer 0; it has heads 0 to 3"),
        ([(0, -1)], {}, "heads: the model has no head -1 in layer 0"),
        ([3], {}, "heads: expected pairs (layer, head)"),
        (pl.DataFrame({"head": [1]}), {}, "heads: the frame of heads has no column layer"),
        (pl.DataFrame({"layer": [1], "kv_head": [2]}), {}, "heads: the model has no group 2 of heads in layer 1"),
        ([(0, 0)], {"how": "half"}, "ablated: how='half' is not one of zero, mean"),
        ([(0, 0)], {"how": "mean"}, "ablated: how='mean' needs means"),
        ([(0, 0)], {"means": {}}, "nothing else takes any"),
    ],
)
def test_heads_that_there_are_not_are_told(heads: object, options: dict[str, object], message: str) -> None:
    with pytest.raises(headscore.InputError) as error, headscore.ablated(MODELS["llama"](), heads, **options):
        pass
    assert message in str(error.value)


# --------------------------------------------------------------------------------------------------------------- outcomes


def by_hand(model: PreTrainedModel, question: Question, heads: Sequence[tuple[int, int]]) -> dict[str, float]:
    """What is read off a question, with the model run on each answer alone and whole."""
    with torch.inference_mode():
        ids = torch.from_numpy(question.sequences[0][: question.prompt].astype(np.int64))[None]
        expected = model(input_ids=ids).logits[0, -1].double().log_softmax(-1)
        with headscore.ablated(model, heads) if heads else contextlib.nullcontext():
            found = model(input_ids=ids).logits[0, -1].double().log_softmax(-1)
            likely = []
            for answer in question.continuations:
                whole = torch.cat([ids[0], torch.from_numpy(answer.ids.astype(np.int64))])[None]
                after = model(input_ids=whole).logits[0, question.prompt - 1 : -1].double().log_softmax(-1)
                likely.append(float(after.gather(1, whole[0, question.prompt :, None]).sum()))
    own, lengths = question.answers.own, np.array(question.answers.lengths)
    return {
        "kl": float((expected.exp() * (expected - found)).sum()),
        "nll": -likely[own],  # type: ignore[index]
        "acc": float(np.argmax(likely) == own),
        "acc_norm": float(np.argmax(np.array(likely) / lengths) == own),
    }


@pytest.mark.parametrize("name", ["llama", "gemma2", "falcon", "gpt_neox", "gpt_neo"])
@pytest.mark.parametrize(("kind", "data"), [("label", tiny.ARC), ("text", tiny.ARC), ("label", tiny.LLM_ADAPTERS)])
def test_what_is_read_off_is_what_each_answer_alone_gives(name: str, kind: AnswerKind, data: object) -> None:
    """Many sets in one padded batch, each sample with gates of its own, read off the fewest passes."""
    model, asked = MODELS[name](), questions(4, kind, data)
    sets = [[(0, 1)], [(1, 0), (2, 3), (2, 1)], []]
    several = evaluator(model, asked)
    several.intact()
    for heads, outcomes in zip(sets, several.without(sets), strict=True):
        for place, question in enumerate(asked):
            for metric, wanted in by_hand(model, question, heads).items():
                assert getattr(outcomes, metric)[place] == pytest.approx(wanted, rel=1e-4, abs=2e-5), (metric, heads)


def test_batches_change_nothing_but_rounding() -> None:
    model, asked = MODELS["llama"](), questions()
    sets = [[(0, 1)], [(1, 0), (2, 3)], [(2, 2)]]
    found: list[list[Outcomes]] = []
    for size in (1, 8):
        several = evaluator(model, asked, batch_size=size, batch_tokens=5000)
        several.intact()
        found.append(several.without(sets) if size == 8 else [several.without([heads])[0] for heads in sets])
    for one, eight in zip(*found, strict=True):
        for field in dataclasses.fields(Outcomes):
            np.testing.assert_allclose(getattr(one, field.name), getattr(eight, field.name), rtol=1e-4, atol=1e-5)


def test_the_gradient_of_a_gate_is_what_finite_differences_give() -> None:
    model, asked = MODELS["llama"](), questions(3)
    several = evaluator(model, asked)
    model.double()
    gradients = several.gate_gradients()
    step = 1e-2  # norms are computed in float32, so a smaller one would be lost in rounding
    for layer, head in [(0, 1), (1, 2), (2, 0), (2, 3)]:
        weight = output_projections(model)[layer].weight
        nll = []
        for gate in (1 + step, 1 - step):
            with torch.no_grad():
                before = weight.clone()
                weight[:, columns(head)] *= gate
                nll.append([by_hand(model, question, [])["nll"] for question in asked])
                weight.copy_(before)
        differences = (np.array(nll[0]) - np.array(nll[1])) / (2 * step)
        found = [gradients[number][layer][head] for number in range(3)]
        np.testing.assert_allclose(found, differences, rtol=5e-3, atol=1e-3)
    assert all(parameter.requires_grad for parameter in model.parameters()), "as before"


def test_a_row_without_an_answer_has_its_divergence_alone() -> None:
    asked = [dataclasses.replace(each, answers=type(each.answers)(), continuations=[]) for each in questions(3)]
    several = evaluator(MODELS["llama"](), asked)
    several.intact()
    (outcomes,) = several.without([[(0, 0)]])
    assert (outcomes.kl > 0).all()
    assert np.isnan(outcomes.nll).all() and np.isnan(outcomes.acc).all() and np.isnan(outcomes.acc_norm).all()
    assert several.gate_gradients() == {}
