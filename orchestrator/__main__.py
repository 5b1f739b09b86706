"""`python -m msad` is `msad`."""

from msad.terminal.cli import main

if __name__ == "__main__":
    main()
