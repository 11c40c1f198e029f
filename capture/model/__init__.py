"""A model: found, loaded, and what is known of it and of its device. Start at `chosen_model.py`: that of the settings."""
