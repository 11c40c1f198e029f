import pytest
import torch

from headscore.capture.model.device import PROFILES
from headscore.capture.model.memory import fitting_tokens

GPU = torch.device("cuda", 0)


class Memory:
    """A GPU whose batches take `fixed` bytes and `each` for every prompt, of `free` bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fixed: int, each: int, free: int):
        self.fixed, self.each, self.free, self.peak = fixed, each, free, 0
        self.counts: list[int] = []
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda gpu: None)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda gpu: self.peak)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (free - 300, 10 * free))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda gpu: 400)  # of which 100 are in use
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda gpu: 100)

    def run(self, count: int) -> None:
        self.counts.append(count)
        if self.fixed + count * self.each > self.free:
            raise torch.OutOfMemoryError
        self.peak = self.fixed + count * self.each


def test_a_batch_is_as_large_as_the_free_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(monkeypatch, fixed=50, each=1000, free=20_000)
    assert fitting_tokens(memory.run, 100, [GPU]) == 14 * 100, "seven tenths of 20 prompts"
    assert memory.counts == [1, 1, 2]


def test_a_batch_is_no_larger_than_is_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(monkeypatch, fixed=50, each=10, free=10**9)
    assert fitting_tokens(memory.run, 100, [GPU]) == PROFILES["cuda"].enough_tokens


def test_where_two_prompts_are_too_many_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(monkeypatch, fixed=50, each=1000, free=1500)
    assert fitting_tokens(memory.run, 100, [GPU]) == 100


def test_on_a_cpu_nothing_is_run() -> None:
    assert fitting_tokens(lambda count: pytest.fail("was run"), 100, [torch.device("cpu")]) == PROFILES["cpu"].enough_tokens
    assert fitting_tokens(lambda count: pytest.fail("was run"), 5000, [torch.device("cpu")]) == 5000
