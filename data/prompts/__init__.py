"""From the rows of a data file to the token ids that a model reads. Start at `maker.py`: it makes the prompt of a row."""
