"""What trains, masks or takes out chosen heads does so to these alone: PEFT's SHiRA and LoRA, head_masks, and checkpoints."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from architectures import ARCHITECTURES
from exported import HEADS, IDS, KV_HEADS, LAYERS, WIDTH, loaded, logits, step
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

import headscore
from headscore.capture.ablating.zeroed import zero_heads
from headscore.data.errors import InputError
from headscore.data.head_parts import groups_among, of_heads
from headscore.score.results import read_results


@pytest.fixture
def model(ranked: tuple[Path, Path]) -> PreTrainedModel:
    return loaded(ranked[0])


@pytest.fixture
def results(ranked: tuple[Path, Path]) -> Path:
    return ranked[1]


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Which entries of which weights differ."""
    assert before.keys() == after.keys()
    for name, value in before.items():
        if not torch.equal(value, after[name]):
            yield name, value != after[name]


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def moved_heads(name: str, moved: Tensor) -> set[int]:
    """The heads of the rows or columns that moved; all of a row's or column's entries did."""
    along = moved.any(0) if "o_proj" in name else moved.any(1)
    return set((torch.nonzero(along).flatten() // WIDTH).tolist())


# ------------------------------------------------------------------------------------------------------------------ masks


@pytest.mark.parametrize("no_model", [None, "smollm2-135m"])
def test_masks_need_a_model(no_model: Any) -> None:
    with pytest.raises(InputError, match=r"head_masks: model=.* is not a model; load one with transformers"):
        headscore.head_masks([(0, 1)], no_model)


def test_groups_all_of_whose_heads_are_chosen() -> None:
    assert groups_among([0, 1, 2, 5], 6, 3) == [0] and groups_among([0, 1, 2, 5], 6, 3, "any") == [0, 1, 2]
    assert groups_among([3, 1], 4, 4) == [1, 3] and groups_among([], 4, 2) == []
    assert of_heads([1], 3, 2).tolist() == [False, False, True, True, False, False]


def test_masks_are_those_of_the_chosen_heads(results: Path, model: PreTrainedModel) -> None:
    masks = headscore.head_masks([(0, 1), (2, 2), (2, 3)], model)
    assert set(masks.rows) == {
        "model.layers.0.self_attn.q_proj",
        *(f"model.layers.2.self_attn.{part}_proj" for part in "qkv"),
    }, "the keys of layer 0's group are head 0's, too"
    assert set(masks.columns) == {f"model.layers.{layer}.self_attn.o_proj" for layer in (0, 2)}
    assert torch.nonzero(masks.rows["model.layers.0.self_attn.q_proj"]).flatten().tolist() == list(range(8, 16))
    assert torch.nonzero(masks.rows["model.layers.2.self_attn.v_proj"]).flatten().tolist() == list(range(8, 16))
    assert torch.nonzero(masks.columns["model.layers.2.self_attn.o_proj"]).flatten().tolist() == list(range(16, 32))
    shared = headscore.head_masks([(0, 1)], model, groups="any")
    assert shared.rows["model.layers.0.self_attn.k_proj"].sum() == WIDTH
    for name, mask in (masks.rows | masks.columns).items():
        weight = model.get_submodule(name).weight
        assert mask.dtype == torch.bool and len(mask) == weight.shape[name.endswith("o_proj")]


def test_masks_of_results_are_those_of_the_export(results: Path, model: PreTrainedModel, tmp_path: Path) -> None:
    masks = headscore.head_masks(results, model, top_k=5)
    headscore.export(results, tmp_path / "p", format="peft", top_k=5)
    archive = np.load(tmp_path / "p" / "masks.npz")
    own = {f"{path}.rows": mask for path, mask in masks.rows.items()}
    own |= {f"{path}.columns": mask for path, mask in masks.columns.items()}
    given = {name: archive[name] for name in archive.files if archive[name].any()}
    assert own.keys() == given.keys() and all((own[name].numpy() == given[name]).all() for name in own)
    frame = read_results(results).heads.sort("rank").head(5)
    for heads in (frame, read_results(results).order()[:5]):
        assert headscore.head_masks(heads, model).modules == masks.modules


def test_only_what_is_masked_matters_to_other_heads(model: PreTrainedModel) -> None:
    """Rows of whole groups changed at random: the z of every other head stays as it is."""
    masks = headscore.head_masks([(1, 0), (1, 1)], model)
    entered: list[Tensor] = []
    hook = model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    with torch.no_grad():
        model(input_ids=IDS)
        for path, rows in masks.rows.items():
            model.get_submodule(path).weight[rows] += 1
        model(input_ids=IDS)
    hook.remove()
    before, after = (each.unflatten(-1, (HEADS, WIDTH)) for each in entered)
    assert torch.equal(before[:, :, 2:], after[:, :, 2:]) and not torch.equal(before[:, :, :2], after[:, :, :2])


@pytest.mark.parametrize(
    ("results", "options", "message"),
    [
        ([(0, 4)], {}, "the model has no head 4 in layer 0"),
        ([(7, 0)], {}, "the model has no head 0 in layer 7"),
        ([(0, 1)], {"top_k": 3}, "options choose heads of a folder of results"),
        ([(0, 1)], {"groups": "some"}, "groups='some' is not one of whole, any"),
        ("nowhere", {"top_k": 3}, "nowhere: holds no results"),
        ("nowhere", {}, "which heads of the results"),
        (3, {}, "expected pairs"),
    ],
)
def test_what_no_masks_can_be_made_of(model: PreTrainedModel, results: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        headscore.head_masks(results, model, **options)


@pytest.mark.parametrize(("name", "message"), [("gpt2", "makes its query together"), ("qwen3_next", "more than one query")])
def test_projections_that_make_more_than_heads_are_refused(name: str, message: str) -> None:
    model = tiny.build(ARCHITECTURES[name].config())
    layer = next(iter(headscore.capture.ablating.ablation.attention_layers(model)))
    with pytest.raises(InputError, match=message):
        headscore.head_masks([(layer, 0)], model)


# ------------------------------------------------------------------------------------------------------------------- PEFT


def test_shira_trains_exactly_the_chosen_heads(results: Path, model: PreTrainedModel, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    chosen = headscore.export(results, tmp_path / "shira", format="shira", top_k_per_layer=2).heads
    before = weights(model)
    adapted = peft.PeftModel.from_pretrained(model, tmp_path / "shira", is_trainable=True)
    trainable = [p for p in adapted.parameters() if p.requires_grad]
    assert len(trainable) == 2 * LAYERS and not any(p.any() for p in trainable)
    step(adapted)
    after = weights(adapted.merge_and_unload())
    expected = {layer: {head for own, head in chosen if own == layer} for layer in range(LAYERS)}
    found = dict(changed(before, after))
    assert set(found) == {f"model.layers.{layer}.self_attn.{part}_proj.weight" for layer in range(LAYERS) for part in "qo"}
    for name, moved in found.items():
        assert moved_heads(name, moved) == expected[int(name.split(".")[2])], name
        assert moved.float().mean() > 0.9 * 2 / HEADS, "and all of theirs, but for what has no gradient"


def test_a_trained_shira_adapter_is_an_ordinary_one(results: Path, ranked: tuple[Path, Path], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    headscore.export(results, tmp_path / "shira", format="shira", top_k_per_layer=1)
    adapted = peft.PeftModel.from_pretrained(loaded(ranked[0]), tmp_path / "shira", is_trainable=True)
    step(adapted)
    adapted.save_pretrained(tmp_path / "trained")
    again = peft.PeftModel.from_pretrained(loaded(ranked[0]), tmp_path / "trained")
    with torch.inference_mode():
        assert torch.equal(again(input_ids=IDS).logits, adapted(input_ids=IDS).logits)


@pytest.mark.parametrize("k", [2, 5])
def test_a_lora_config_hits_the_layers_with_chosen_heads_and_no_others(
    results: Path, model: PreTrainedModel, tmp_path: Path, k: int
) -> None:
    peft = pytest.importorskip("peft")
    chosen = headscore.export(results, tmp_path / "p", format="peft", top_k=k).heads
    config = peft.LoraConfig(**json.loads((tmp_path / "p" / "lora.json").read_text()))
    adapted = peft.get_peft_model(model, config)
    ranks = {
        name.removeprefix("base_model.model."): (module.r["default"], module.scaling["default"])
        for name, module in adapted.named_modules()
        if hasattr(module, "lora_A")
    }
    counts = {layer: sum(own == layer for own, _ in chosen) for layer, _ in chosen}
    assert len(counts) < LAYERS or len(set(counts.values())) > 1, "else nothing is shown"
    assert ranks == {
        f"model.layers.{layer}.self_attn.{part}_proj": (4 * count, 2.0) for layer, count in counts.items() for part in "qkvo"
    }


def lora_on_chosen_heads() -> Callable[..., Any]:
    """The recipe of docs/use-your-ranking.md."""
    page = (Path(__file__).parent.parent / "docs" / "use-your-ranking.md").read_text()
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert code and len(code[1].splitlines()) <= 24, "about twenty lines"
    names: dict[str, Any] = {}

    def run(model: PreTrainedModel, results: Path, train: Callable[[Any], None], saved: Path) -> Any:
        names.update(model=model, train=train)
        exec(code[1].replace('"results"', repr(str(results))).replace('"lora-of-heads"', repr(str(saved))), names)
        return names["adapted"], names["masks"]

    return run


def test_lora_on_chosen_heads_moves_nothing_else(results: Path, ranked: tuple[Path, Path], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    before = weights(loaded(ranked[0]))
    adapted, masks = lora_on_chosen_heads()(loaded(ranked[0]), results, lambda adapted: step(adapted, 3), tmp_path / "saved")
    merged = peft.PeftModel.from_pretrained(loaded(ranked[0]), tmp_path / "saved").merge_and_unload()
    found = dict(changed(before, weights(merged)))
    assert set(found) == {f"{path}.weight" for path in masks.modules}
    for name, moved in found.items():
        path = name.removesuffix(".weight")
        along, mask = (moved.any(1), masks.rows[path]) if path in masks.rows else (moved.any(0), masks.columns[path])
        assert torch.equal(along, mask), name
    product = {  # to the bit, not only as far as adding it to the weight shows
        name: module.get_delta_weight("default") for name, module in adapted.named_modules() if hasattr(module, "lora_A")
    }
    for name, delta in product.items():
        path = name.removeprefix("base_model.model.")
        outside = delta[~masks.rows[path]] if path in masks.rows else delta[:, ~masks.columns[path]]
        assert not outside.any() and delta.any(), path


# ------------------------------------------------------------------------------------------------------------ checkpoints


def test_a_checkpoint_gives_what_an_ablated_model_gives(
    ranked: tuple[Path, Path], model: PreTrainedModel, tmp_path: Path
) -> None:
    found = headscore.export(ranked[1], tmp_path / "zeroed", format="checkpoint", top_k=3)
    zeroed = loaded(tmp_path / "zeroed")
    with headscore.ablated(model, found.heads):
        assert torch.equal(logits(zeroed), logits(model))
    assert not torch.equal(logits(zeroed), logits(model))
    assert AutoTokenizer.from_pretrained(tmp_path / "zeroed")("Tea")["input_ids"] == tiny.tokenizer()("Tea")["input_ids"]
    told = json.loads((tmp_path / "zeroed" / "headscore.json").read_text())
    assert [tuple(pair) for pair in told["zeroed"]] == found.heads and told["loaded"]["fingerprint"] == told["model"][
        "fingerprint"
    ]
    moved = dict(changed(weights(model), weights(zeroed)))
    assert all(name.endswith("o_proj.weight") for name in moved)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "falcon, ALiBi", "deepseek_v3"])
def test_zeroed_columns_are_ablated_heads_in_every_architecture(name: str) -> None:
    """Biases of the output projection stay, as they are of no head."""
    model = tiny.build(ARCHITECTURES[name].config())
    layers = headscore.capture.ablating.ablation.attention_layers(model)
    heads = [(layer, found.heads - 1) for layer, found in layers.items()]
    with headscore.ablated(model, heads):
        expected = logits(model)
    zero_heads(model, heads)
    assert torch.equal(logits(model), expected)


def test_groups_are_taken_out_as_groups(ranked: tuple[Path, Path], model: PreTrainedModel, tmp_path: Path) -> None:
    found = headscore.export(ranked[1], tmp_path / "z", format="checkpoint", by="kv_head", top_k=1)
    ((layer, group),) = found.heads
    size = HEADS // KV_HEADS
    with headscore.ablated(model, [(layer, head) for head in range(group * size, (group + 1) * size)]):
        assert torch.equal(logits(loaded(tmp_path / "z")), logits(model))


def test_the_model_of_an_imported_list_cannot_be_checked(ranked: tuple[Path, Path], tmp_path: Path) -> None:
    np.save(tmp_path / "list.npy", np.array([[0, 1]]))
    headscore.import_list(tmp_path / "list.npy", tmp_path / "listed", format="lofit")
    options: dict[str, Any] = {"format": "checkpoint", "top_k": 1, "model": str(ranked[0])}
    with pytest.raises(
        InputError, match=r"^model .*: cannot be checked, as the imported list names no model; allow_other_model"
    ):
        headscore.export(tmp_path / "listed", tmp_path / "z", **options)
    headscore.export(tmp_path / "listed", tmp_path / "z", allow_other_model=True, **options)


def test_another_model_than_the_captured_one_is_refused(ranked: tuple[Path, Path], tmp_path: Path) -> None:
    from exported import SIZES
    from transformers import LlamaConfig

    other = tiny.save(tiny.build(LlamaConfig(**SIZES), seed=5), tmp_path / "other")
    options: dict[str, Any] = {"format": "checkpoint", "top_k": 1, "model": str(other)}
    with pytest.raises(
        InputError, match=r"is not the model that was captured .*; allow_other_model=True takes it all the same"
    ):
        headscore.export(ranked[1], tmp_path / "z", **options)
    assert not (tmp_path / "z").exists() and len(list(tmp_path.iterdir())) == 1
    headscore.export(ranked[1], tmp_path / "z", allow_other_model=True, **options)
    with pytest.raises(InputError, match="already exists"):
        headscore.export(ranked[1], tmp_path / "z", allow_other_model=True, **options)
