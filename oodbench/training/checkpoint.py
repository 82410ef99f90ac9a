"""The whole state of a training run in one safetensors file: a killed run continues as if nothing had happened."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from oodbench.files import write_atomically

__all__ = ["load_checkpoint", "save_checkpoint"]


def save_checkpoint(
    path: Path, module: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]
) -> None:
    """Writes weights, averaged weights, the optimizer's moments and `progress` (plain data) by atomic rename."""
    tensors = {f"module.{k}": v for k, v in module.state_dict().items()}
    tensors |= {f"averaged.{k}": v for k, v in averaged.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{k}": v for k, v in state.items()}
    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    with write_atomically(path) as file:
        file.write(save(plain, metadata={"progress": json.dumps(progress)}))


def load_checkpoint(
    path: Path, module: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any] | None:
    """Restores what `save_checkpoint` wrote and returns `progress`; None where there is no readable checkpoint."""
    try:
        with safe_open(path, framework="pt") as file:
            progress: dict[str, Any] = json.loads(file.metadata()["progress"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (FileNotFoundError, SafetensorError):
        return None
    module.load_state_dict(_strip(tensors, "module."))
    averaged.load_state_dict(_strip(tensors, "averaged."))
    states: dict[int, dict[str, Tensor]] = {}
    for key, tensor in _strip(tensors, "optimizer.").items():
        number, _, name = key.partition(".")
        states.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress


def _strip(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
