"""`python -m gateway.cli`: the same program."""

from gateway.cli import main

main()
