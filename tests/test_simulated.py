"""What groups and batches a GPU would get, by a cost model; its assumptions stand in `simulated.py`."""

import numpy as np
import simulated

from headscore.capture.model.device import PROFILES


def mixed_rows(count: int) -> list[np.ndarray]:
    """Prompts as those of commonsense_170k: one start for all, five wordings of questions, of about 80 tokens each."""
    random = np.random.default_rng(0)
    start = list(range(33))
    wordings = [list(range(100 * k, 100 * k + tokens)) for k, tokens in enumerate((12, 9, 14, 10, 6), 1)]
    lengths = np.clip(random.lognormal(3.5, 0.5, count), 5, 300).astype(int)
    ends = [random.integers(1000, 9000, length).tolist() for length in lengths]
    return [np.array(start + wordings[random.integers(5)] + end, np.int32) for end in ends]


def test_mixed_rows_keep_the_modelled_gpu_busy_and_sharing_pays() -> None:
    """With spot checks, as by default; batches fill, as shards are run together."""
    prompts = mixed_rows(7680)
    shared, whole = (simulated.simulated(prompts, share=share) for share in (True, False))
    for gpu in (shared, whole):
        assert gpu.busy / gpu.host >= 0.9, simulated.described(prompts, gpu)
    assert shared.host < 0.8 * whole.host, "0.6 of the tokens are run"
    padded = [count * tokens for count, tokens, _ in shared.passes]
    assert max(padded) <= PROFILES["cuda"].enough_tokens


def test_few_mixed_rows_are_not_cut_into_small_passes() -> None:
    """A shard of mixed rows has one prefix that pays for passes of its own, not one for each wording."""
    shared, whole = (simulated.simulated(mixed_rows(256), share=share) for share in (True, False))
    assert [prefix for _, _, prefix in shared.passes if prefix] == [33] * (len(shared.passes) - 1)
    assert shared.host <= whole.host, simulated.described(mixed_rows(256), shared)
