"""`python -m orchestrator` is `msad`."""

from orchestrator.cli import main

if __name__ == "__main__":
    main()
