"""`python -m sever`."""

from sever.cli import cli

cli(prog_name="sever")
