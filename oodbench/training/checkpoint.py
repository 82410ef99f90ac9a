"""The whole state of a training run in one safetensors file: a killed run continues as if nothing had happened."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from oodbench.files import write_atomically
from oodbench.messages import tell

__all__ = ["load_checkpoint", "save_checkpoint"]


def save_checkpoint(
    path: Path, module: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]
) -> None:
    """Writes weights, averaged weights, the optimizer's moments and `progress` (plain data) by atomic rename."""
    tensors = {f"module.{k}": v for k, v in module.state_dict().items()}
    if averaged is not module:  # a posterior over weights has no average
        tensors |= {f"averaged.{k}": v for k, v in averaged.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{k}": v for k, v in state.items()}
    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    with write_atomically(path) as file:
        told = json.dumps(progress)
        file.write(save(plain, metadata={"progress": told, "sha256": _checksum(plain, told)}))


def load_checkpoint(
    path: Path, module: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any] | None:
    """Restores what `save_checkpoint` wrote and returns `progress`; None where there is no checkpoint.

    One that is damaged or of another format counts as none and is named on stderr; nothing was restored then.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        if metadata.get("sha256") != _checksum(tensors, metadata.get("progress", "")):
            raise ValueError("its checksum does not fit")
        if _shapes(tensors, "module.") != _shapes(module.state_dict()):
            raise ValueError("it is of another version of the model")
    except FileNotFoundError:
        return None
    except (SafetensorError, ValueError, OSError) as error:
        tell(f"oodbench: cannot continue from {path} ({error}): training starts anew.")
        return None
    progress: dict[str, Any] = json.loads(metadata["progress"])
    module.load_state_dict(_strip(tensors, "module."))
    if averaged is not module:
        averaged.load_state_dict(_strip(tensors, "averaged."))
    states: dict[int, dict[str, Tensor]] = {}
    for key, tensor in _strip(tensors, "optimizer.").items():
        number, _, name = key.partition(".")
        states.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress


def _shapes(tensors: Mapping[str, Tensor], prefix: str = "") -> dict[str, tuple[int, ...]]:
    return {key.removeprefix(prefix): tuple(value.shape) for key, value in tensors.items() if key.startswith(prefix)}


def _strip(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _checksum(tensors: Mapping[str, Tensor], progress: str) -> str:
    """SHA-256 over names, types, shapes and bytes of CPU tensors, and over what is told beside them."""
    digest = hashlib.sha256(progress.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"|{name} {tensor.dtype} {tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
