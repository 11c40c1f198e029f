"""What both halves share: rows, prompts, tokens and the cache format. Neither torch nor transformers is imported here."""
