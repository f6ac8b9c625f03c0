"""Continuous groups: canonical-lambda-equitune, from EMLP's function of two vectors to space."""

from equicore.applications.so2.experiment import Run, built, losses
from equicore.applications.so2.tasks import TASKS, PointNet, Residual, Task, Tensors2

__all__ = ["TASKS", "PointNet", "Residual", "Run", "Task", "Tensors2", "built", "losses"]
