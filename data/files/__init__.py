"""Files written whole or not at all, and strangers' files read within bounds. Start at `whole_file.py`."""
