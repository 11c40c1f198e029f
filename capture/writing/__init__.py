"""What is recorded on its way into the cache, as whole shards. Start at `shards.py`: it makes those of a process."""
