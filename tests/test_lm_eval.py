"""What is read off equals lm-evaluation-harness's own, row by row, with and without heads. Needs `pip install lm-eval[hf]`."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from ablations import MODELS, evaluator, questions

import headscore
from headscore.data.prompts.answers import AnswerKind

lm_eval = pytest.importorskip("lm_eval")
ROWS = 12
HEADS = [(0, 1), (1, 0), (2, 3)]


def task(folder: Path, kind: AnswerKind, data: Path) -> dict[str, Any]:
    """The same prompts and answers as a task of the harness."""
    asked = questions(ROWS, kind, data)
    documents = []
    for question in asked:
        prompt = tiny.tokenizer().decode(question.sequences[0][1 : question.prompt])
        texts = question.answers.texts
        documents.append({"prompt": prompt, "choices": [text.lstrip() for text in texts], "gold": question.answers.own})
        delimiter = texts[0][: len(texts[0]) - len(texts[0].lstrip())]
    path = folder / "documents.jsonl"
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return {
        "task": "same_rows",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": delimiter,
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }


@pytest.mark.parametrize("ablated", [False, True])
@pytest.mark.parametrize(("kind", "data"), [("label", tiny.ARC), ("text", tiny.ARC), ("label", tiny.LLM_ADAPTERS)])
def test_accuracies_are_those_of_the_harness(
    kind: AnswerKind, data: Path, ablated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.models.huggingface import HFLM

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    model = MODELS["llama"]()
    several = evaluator(model, questions(ROWS, kind, data))
    ours = several.intact()
    if ablated:
        (ours,) = several.without([HEADS])
    harness = HFLM(pretrained=model, tokenizer=tiny.tokenizer(), batch_size=3, add_bos_token=True)
    with headscore.ablated(model, HEADS) if ablated else contextlib.nullcontext():
        found = lm_eval.simple_evaluate(model=harness, tasks=[task(tmp_path, kind, data)], bootstrap_iters=0)
    theirs = sorted(found["samples"]["same_rows"], key=lambda sample: sample["doc_id"])
    assert [sample["acc"] for sample in theirs] == ours.acc.tolist()
    assert [sample["acc_norm"] for sample in theirs] == ours.acc_norm.tolist()
    for sample, nll in zip(theirs, ours.nll, strict=True):
        likely = sample["filtered_resps"][sample["doc"]["gold"]][0]
        assert -float(likely) == pytest.approx(nll, rel=1e-4)
