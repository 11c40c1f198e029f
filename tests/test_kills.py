from pathlib import Path

from kills import differing_arrays, kill_again_and_again

import headscore


def test_a_capture_survives_being_killed(llama: Path, tmp_path: Path) -> None:
    """The short version of tests/kills.py: a tiny model, two samples to a shard."""
    options = ["--model", str(llama), "--max-samples", "100", "--shard-size", "2"]
    report = kill_again_and_again(options, tmp_path / "killed", kills=3, seconds=8, seed=1)
    assert (report.kills, report.shards, report.made_twice) == (3, 50, 0)
    headscore.capture(tmp_path / "whole", model=str(llama), max_samples=100, shard_size=2)
    assert differing_arrays(tmp_path / "killed", tmp_path / "whole") == []
