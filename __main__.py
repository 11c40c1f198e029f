"""`python -m headscore` is the `headscore` command."""

from headscore.cli import main

main()
