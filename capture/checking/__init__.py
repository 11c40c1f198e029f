"""Compares what is recorded with the model's own eager attention. Start at `selfcheck.py`: before any work is done."""
