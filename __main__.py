"""`python -m pocketzoo`."""

from .cli import main

main()
