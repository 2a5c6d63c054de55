"""`python -m pfa_convert` is `pfa-convert`."""

from pfa_convert.cli import main

if __name__ == "__main__":
    main()
