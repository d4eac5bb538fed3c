"""A machine on which nothing is measured."""

import torch

from system.machine import Machine


def plain_machine(device: str = "cpu", precision: str = "float32") -> Machine:
    """The device, the type of products, and the first way of each table."""
    return Machine(torch.device(device), getattr(torch, precision), f"{device}, {precision}")
