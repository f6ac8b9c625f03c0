"""Devices that networks are computed on."""

from __future__ import annotations

import torch


def check_device(device: str | torch.device) -> None:
    """Raise ValueError unless a device is auto, or one that torch knows and this machine has."""
    try:
        if device != "auto":
            torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"there is no device {device} here: {str(error).splitlines()[0]}"
        ) from error
