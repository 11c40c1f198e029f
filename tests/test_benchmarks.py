"""The benchmarks run, and end with a line of JSON that has all that was asked for; how fast it is, no test says."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import tiny

import headscore

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def figures(benchmark: str, *options: object) -> dict[str, Any]:
    command = [sys.executable, str(BENCHMARKS / benchmark), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_every_way_of_a_capture_is_timed(llama: Path) -> None:
    options = ("--model", llama, "--random-weights", llama / "config.json", "--lengths", 12, "--samples", 4, "--rounds", 1)
    found = figures("bench_capture.py", *options)["results"]["12"]
    assert (found["prompts"], found["tokens"]) == (4, 48)
    checked = {"ours", "shared", "ours_all", "shared_all"}
    ways = {way: found[way] for way in ("plain", "base", "eager", "unchecked", *checked)}
    assert all(way["seconds"] > 0 for way in ways.values())
    assert all(ways[way]["run"] == 1 for way in ways.keys() - checked), "of random tokens nothing is shared or padded"
    assert all(1 < ways[way]["run"] <= 1.5 for way in checked), "what is checked is run again"


def test_a_capture_of_data_runs_what_is_shared_once(llama: Path) -> None:
    options = ("--model", llama, "--data", tiny.LLM_ADAPTERS, "--samples", 8, "--rounds", 1, "--ways", "plain", "unchecked")
    found = figures("bench_capture.py", *options)["results"]["data"]
    assert found["unchecked"]["run"] < 1 <= found["plain"]["run"]


def test_scoring_is_timed_with_and_without_what_is_kept() -> None:
    found = figures("bench_score.py", "--rows", 256, "--size", 0, "--tokens", 8, "--rounds", 1, "--workers", 1)["small"]
    assert 30 * 9 * 256 * 2 * 8 * 0.9 < found["rows_gb"] * 1e9 < 30 * 9 * 256 * 2 * 8 * 1.1
    asked = ("read_gb_s", "lambda", "span", "signal", "fusion")
    assert all(found[name] > 0 for name in asked) and found["workers_1"]["first"] > 0
    assert 0 < found["one_layer"] < 30


def test_a_validation_is_timed_beside_plain_passes(last_token_cache: Path, tmp_path: Path) -> None:
    headscore.score(last_token_cache, tmp_path / "r")
    found = figures("bench_validate.py", tmp_path / "r", "--samples", 4, "--rounds", 2)["results"]
    assert found["rows"] == 4 and found["of_plain"]["plain"] == 1
    assert all(found["seconds"][way] > 0 for way in ("plain", "last", "validate")) and found["sets_per_second"] > 0


def test_the_stability_curve_is_held_against_the_truth() -> None:
    found = figures("stability_truth.py", "--trials", 2, "--samples", 32, "--population", 500, "--pairs", 20)["results"]
    assert found["16"]["trials"] == 2 and 0 < found["16"]["true"] <= 1
    assert all(abs(line.get("measured_bias", 0)) < 0.3 for line in found.values())


def test_the_calibration_of_the_bootstrap_is_measured() -> None:
    found = figures("calibration.py", "--trials", 2, "--replicates", 100, "--samples", 20, "--noise", 0.3)
    assert set(found["top"]["20 samples, noise 0.3"]) == {"fresh", "half", "plain"}
    assert set(found["intervals"]) == {"20 samples, spread", "20 samples, ties", "20 samples, equal"}
