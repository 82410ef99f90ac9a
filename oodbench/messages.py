"""What is said to the user while a command works: on stderr, as results alone go to stdout."""

import sys

__all__ = ["tell"]


def tell(sentence: str) -> None:
    """Writes a line of its own to stderr: a progress bar that is drawn there is cleared first and drawn again below."""
    bars = sys.modules.get("tqdm")  # where nobody imported it, there is no bar, and nobody waits for the import
    if bars is None:
        print(sentence, file=sys.stderr)
    else:
        bars.tqdm.write(sentence, file=sys.stderr)
