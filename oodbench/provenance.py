"""What a number needs to be repeated: versions, commit, device."""

import functools
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["commit", "device_name", "installed_version", "versions"]


def versions() -> dict[str, str]:
    """Versions of what computes."""
    import numpy
    import PIL
    import torch

    return {
        "oodbench": installed_version("oodbench") or "checkout",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,  # it scales images
    }


def installed_version(package: str) -> str | None:
    """The version of an installed package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def commit() -> dict[str, Any]:
    """{"commit": hash or None, "dirty": whether tracked files differ from it}; None outside of a checkout."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return {"commit": None, "dirty": False}
    try:
        head = _git(root, "rev-parse", "HEAD").strip()
        # Results and weights are what runs write: they do not change what the code computes.
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ":!results", ":!pretrained")
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": False}
    return {"commit": head, "dirty": bool(changed.strip())}


def device_name(device: str) -> str:
    """The device in words."""
    import torch

    from oodbench.engine.device import choose_device

    chosen = choose_device(device)
    if chosen.type == "cuda":
        return torch.cuda.get_device_name(chosen)
    return f"cpu ({torch.get_num_threads()} threads)"


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
