"""A capture as one process among others: its share, what an earlier run has left, Ctrl-C. Start at `ranks.py`. No torch."""
