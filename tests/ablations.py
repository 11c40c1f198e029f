"""Models whose heads are taken out, and the questions that they are asked."""

from collections.abc import Callable, Sequence

import tiny
from architectures import ARCHITECTURES
from transformers import PreTrainedModel

from headscore.capture.ablating.ablation import attention_layers
from headscore.capture.ablating.evaluator import Evaluator
from headscore.capture.inputs.questions import Question, questions_of
from headscore.data.prompts.answers import AnswerKind, answers_of
from headscore.data.prompts.maker import PromptMaker
from headscore.data.prompts.rows import read_data
from headscore.data.prompts.tokens import Encoded, encode

OTHERS = ("gpt_neox", "falcon", "gpt_neo", "phi", "cohere")  # parallel blocks, one key for all, the eager way


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    **{name: (lambda made=made: tiny.build(made())) for name, made in tiny.CONFIGS.items()},
    **{name: (lambda name=name: tiny.build(ARCHITECTURES[name].config())) for name in OTHERS},
}


def questions(rows: int = 12, kind: AnswerKind = "label", data: object = tiny.ARC) -> list[Question]:
    read = read_data(data).rows[:rows]  # type: ignore[arg-type]
    maker = PromptMaker(data, read)  # type: ignore[arg-type]
    made = encode([(number, maker(row, number)) for number, row in enumerate(read)], tiny.tokenizer(), 512, True)  # type: ignore[misc]
    encoded = [each for each in made if isinstance(each, Encoded)]
    answers = [answers_of(read[each.row], maker.style, each.prompt.text, kind) for each in encoded]
    return questions_of(encoded, answers, tiny.tokenizer(), add_special=True)


def evaluator(model: PreTrainedModel, asked: Sequence[Question], **options: int) -> Evaluator:
    return Evaluator(model, attention_layers(model), asked, **options)
