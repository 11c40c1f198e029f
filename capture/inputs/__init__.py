"""What a capture and a validation are given, as tokens and names. Start at `tokenising.py`: rows to samples. No torch."""
