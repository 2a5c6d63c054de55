"""Runs the command line from a checkout: `python cli.py resnet50 --rule pfa`."""

from pfa_convert.cli import main

if __name__ == "__main__":
    main()
