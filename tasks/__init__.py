"""The task suite: attention variants, each one file. See docs/tasks.md."""

from tasks.registry import discover, find
from tasks.spec import DTYPES, Parameter, Task, TaskError, TensorSpec, Workload

__all__ = ["DTYPES", "Parameter", "Task", "TaskError", "TensorSpec", "Workload", "discover", "find"]
