"""Runs samples and records every attention layer as it is heard. Start at `recorder.py`: a batch from pass to host."""
