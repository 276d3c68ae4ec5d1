"""``python -m daguerre`` is the command ``daguerre``."""

from daguerre.cli import main

main()
