"""A model without some of its heads, and what it loses. Start at `ablation.py`: it takes heads out and puts them back."""
