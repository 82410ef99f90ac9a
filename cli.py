"""`python cli.py run ...`: the commands from a bare checkout."""

from oodbench.cli import main

if __name__ == "__main__":
    main()
