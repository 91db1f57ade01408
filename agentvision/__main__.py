"""`python -m agentvision` is the `agentvision` command."""

from agentvision.cli import main

if __name__ == "__main__":
    main()
