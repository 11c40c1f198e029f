"""The cache format: written, read, checked, merged and shown. Start at `folder.py`: a cache as a folder of files."""
