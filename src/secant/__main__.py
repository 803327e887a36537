"""`python -m secant`: the command line."""

from secant.cli import main

main()
