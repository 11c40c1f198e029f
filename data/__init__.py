"""What both halves share; neither torch nor transformers is imported here.

A folder for each idea, which uses only those before it: `files/`, `options/`, `prompts/` (from rows to tokens), `cache/`.
Beside them is what all use: `errors.py` and how their words are chosen, `voice.py` and `text.py`, and what stands alone.
"""
