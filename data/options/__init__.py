"""What a command and its library call may be given, declared once. Start at `settings.py`: the options of capture and score."""
