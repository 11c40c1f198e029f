"""Runs a model over questions without some of its heads, set by set, and reads off what it loses."""

import contextlib
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...data.errors import HeadscoreError, RunError, one_line
from ..inputs.lengths import NO_RULES, LengthRules
from ..inputs.questions import Question
from ..model.device import computing_on, profile_of
from ..model.layers import AttentionLayer
from ..model.model_state import ModelState
from ..model.out_of_memory import is_out_of_memory
from ..recording.batches import batch_counts, padded
from .ablation import HeadGates, MeanOutputs, Means, gates_without
from .readings import Item, Outcomes, Read, ReadOff, divergences, head_at

logger = logging.getLogger("headscore")

Head = tuple[int, int]  # layer, head

_BATCHES_AT_ONCE = 8  # sets are run together until they fill this many batches, so that few batches are not full


class Evaluator:
    """Runs a model over questions, intact or without heads.

    Args:
        model: with its language-modelling head, in evaluation mode.
        layers: its attention layers.
        questions: what it is asked.
        rules: which lengths may share a pass.
        batch_tokens: tokens in a batch, padding included; what suits the device if None.
        batch_size: maximum of sequences in a batch, None for no maximum.
        means: what stands in the place of a head that is taken out; 0 if None.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Mapping[int, AttentionLayer],
        questions: Sequence[Question],
        *,
        rules: LengthRules = NO_RULES,
        batch_tokens: int | None = None,
        batch_size: int | None = None,
        means: Means | None = None,
    ):
        self.model, self._layers, self._questions, self._rules = model, layers, questions, rules
        profile = profile_of(model.device)
        self._batch_tokens = batch_tokens or profile.enough_tokens
        self._overhead = profile.batch_overhead
        self._batch_size = batch_size
        self.means = means
        self._state = ModelState(model)
        self._expected = torch.empty(0)  # log p [N,V] of the intact model's next token after each prompt

    def sets_at_once(self) -> int:
        """How many sets of heads fill batches well when they are run together."""
        tokens = sum(len(ids) for question in self._questions for ids in question.sequences)
        return math.ceil(_BATCHES_AT_ONCE * self._batch_tokens / max(1, tokens))

    def intact(self) -> Outcomes:
        """What the model gives as it is, with which later outcomes are compared."""
        self._expected = torch.empty(0)
        return self._outcomes([[]])[0]

    def again(self) -> Outcomes:
        """The same in batches of other sizes; `intact` must have been run. What differs is noise."""
        before = self._batch_tokens
        self._batch_tokens = max(1, before // 2)
        try:
            return self._outcomes([[]])[0]
        finally:
            self._batch_tokens = before

    def without(self, sets: Sequence[Sequence[Head]]) -> list[Outcomes]:
        """What the model gives without the heads of each set; `intact` must have been run.

        Raises InputError for a head that it does not have, RunError where it fails or memory does not hold a single sequence.
        """
        return self._outcomes(sets)

    def find_means(self) -> None:
        """Let heads that are taken out be replaced by the mean of their z over all positions of the prompts."""
        prompts = [q.sequences[0][: q.prompt] for q in self._questions]
        found = MeanOutputs(self._layers)

        def run(batch: Sequence[Item]) -> None:
            ids, lengths = padded([prompts[item.question] for item in batch])
            found.lengths = lengths
            self._forward(ids)
            found.add()

        with torch.inference_mode(), found:
            self._in_batches([Item(0, number, 0) for number in range(len(prompts))], run)
        self.means = found.result()

    def gate_gradients(self) -> dict[int, dict[int, npt.NDArray[np.float32]]]:
        """∂nll/∂gate [H] by question number and layer, for each question that has an answer of its own.

        The gate multiplies z of a head at every position, and is 1: where it goes to 0 the nll grows by minus this, to first
        order.
        """
        asked = {number: q for number, q in enumerate(self._questions) if q.answers.own is not None}
        items = [Item(0, number, q.own.sequence) for number, q in asked.items()]
        layers = {layer: found for layer, found in self._layers.items() if found.projection is not None}
        gradients: dict[int, dict[int, npt.NDArray[np.float32]]] = {}

        def run(batch: Sequence[Item]) -> None:
            gates = {layer: torch.ones(len(batch), found.heads, requires_grad=True) for layer, found in layers.items()}
            hooks.set(gates)
            reads = [read for place, item in enumerate(batch) for read in self._reads(place, item, own_only=True)]
            with torch.enable_grad():
                likely = self._next_tokens(batch, reads)
                loss = -likely[range(len(reads)), [read.token for read in reads]].sum()
                found = torch.autograd.grad(loss, list(gates.values()))
            values = {layer: gradient.numpy() for layer, gradient in zip(gates, found, strict=True)}
            for place, item in enumerate(batch):
                gradients[item.question] = {layer: gradient[place] for layer, gradient in values.items()}

        with _frozen(self.model), HeadGates(layers) as hooks:
            self._in_batches(items, run)
        return gradients

    def _outcomes(self, sets: Sequence[Sequence[Head]]) -> list[Outcomes]:
        """The outcomes without each set of heads. The first call is for the intact model; later ones are compared with it."""
        items = [
            Item(number, question, sequence)
            for number in range(len(sets))
            for question, asked in enumerate(self._questions)
            for sequence in range(len(asked.sequences))
        ]
        is_first = not len(self._expected)
        found = [ReadOff(self._questions) for _ in sets]

        def run(batch: Sequence[Item]) -> None:
            hooks.set(gates_without([sets[item.set] for item in batch], self._layers))
            reads = [read for place, item in enumerate(batch) for read in self._reads(place, item)]
            likely = self._next_tokens(batch, reads)
            tokens = torch.tensor([read.token for read in reads], device=likely.device)
            chosen = likely.gather(1, tokens[:, None])[:, 0].double().cpu().numpy()
            for read, value in zip(reads, chosen, strict=True):
                if read.answer is not None:
                    found[read.item.set].likelihoods[read.item.question][read.answer] += value
            ends = [number for number, read in enumerate(reads) if read.answer is None]
            asked = torch.tensor([reads[n].item.question for n in ends], dtype=torch.long, device=likely.device)
            if is_first and not len(self._expected):
                self._expected = likely.new_empty((len(self._questions), likely.shape[1]))
            if is_first:
                self._expected[asked] = likely[ends]
            for number, value in zip(ends, divergences(self._expected[asked], likely[ends]), strict=True):
                found[reads[number].item.set].kl[reads[number].item.question] = value

        with torch.inference_mode(), HeadGates(self._layers, self.means) as hooks:
            self._in_batches(items, run)
        return [each.outcomes() for each in found]

    def _reads(self, place: int, item: Item, *, own_only: bool = False) -> Iterator["Read"]:
        """What is read off a sequence that is in this place of its batch."""
        asked = self._questions[item.question]
        if item.sequence == 0 and not own_only:
            yield Read(item, place, asked.prompt - 1)
        for answer, continuation in enumerate(asked.continuations):
            if continuation.sequence == item.sequence and (answer == asked.answers.own or not own_only):
                for step, token in enumerate(continuation.ids.tolist()):
                    yield Read(item, place, asked.prompt - 1 + step, answer, token)

    def _in_batches(self, items: Sequence[Item], run: Callable[[Sequence[Item]], None]) -> None:
        """Run items in batches, the longest first; a batch for which memory runs out is halved, and so are those to come."""
        ways: dict[int, list[Item]] = defaultdict(list)
        for item in items:
            ways[self._rules.way(self._length(item))].append(item)
        with computing_on(self.model.device):
            for members in ways.values():
                self._in_halving_batches(members, run)

    def _in_halving_batches(self, items: Sequence[Item], run: Callable[[Sequence[Item]], None]) -> None:
        left = sorted(items, key=lambda item: (-self._length(item), item.question, item.sequence, item.set))
        while left:
            lengths = [self._length(item) for item in left]
            for count in batch_counts(lengths, self._batch_tokens, self._batch_size, self._overhead):
                try:
                    run(left[:count])
                except torch.OutOfMemoryError as error:
                    self._halve(lengths[-len(left)], count, error)
                    break
                del left[:count]

    def _halve(self, tokens: int, count: int, error: Exception) -> None:
        if count == 1:
            smaller = "use a smaller --dtype" if self.model.dtype == torch.float32 else "leave such rows out"
            raise RunError(
                f"out of memory on {self.model.device} with a single sequence of {tokens} tokens; {smaller}"
            ) from error
        self._batch_tokens = tokens * count // 2
        logger.warning("out of memory with %d sequences; going on with smaller batches", count)
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _length(self, item: Item) -> int:
        return len(self._questions[item.question].sequences[item.sequence])

    def _next_tokens(self, batch: Sequence[Item], reads: Sequence["Read"]) -> Tensor:
        """log p [R,V] of the token after each of the positions that are read, float32."""
        ids, _ = padded([self._questions[item.question].sequences[item.sequence] for item in batch])
        rows = torch.tensor([read.place for read in reads])
        positions = torch.tensor([read.position for read in reads])
        with head_at(self.model, rows, positions) as gathered:
            logits = self._forward(ids)
        if not gathered:
            logits = logits[rows.to(logits.device), positions.to(logits.device)][None]
        likely = torch.log_softmax(logits[0].float(), -1)
        if not bool(torch.isfinite(likely.amax(-1)).all()):
            wider = "validate with another model" if self.model.dtype == torch.float32 else "give a wider --dtype"
            raise RunError(f"{self.model.config.model_type}: gives NaN or infinite logits; {wider}")
        return likely

    def _forward(self, ids: Tensor) -> Tensor:
        """The model's logits for a batch; whatever the pass leaves in the model is undone."""
        try:
            logits: Tensor = self.model(input_ids=ids.to(self.model.device), use_cache=False)[0]
            return logits
        except Exception as error:  # whatever an architecture's code raises
            if isinstance(error, HeadscoreError):
                raise
            if is_out_of_memory(error):
                raise torch.OutOfMemoryError(str(error)) from error
            kind = self.model.config.model_type
            raise RunError(f"{kind}: failed on {len(ids)} sequences: {one_line(error)[:300]}") from error
        finally:
            self._state.restore()


@contextlib.contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
    """Within this context no gradient of a parameter is made."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
