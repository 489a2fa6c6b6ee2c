"""`python -m doublespec`."""

from doublespec.cli import main

main()
