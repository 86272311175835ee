"""The launch this process is part of: which of its processes it is, and how many there are.

RANK, LOCAL_RANK and WORLD_SIZE are set by torchrun and `accelerate launch` before Python starts: facts
of the launch, known before torch is imported.
"""

import os

__all__ = ["count_processes", "is_main_process"]


def is_main_process() -> bool:
    """Whether this process is the one that writes: rank 0 of the launch, or the only one."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def count_processes() -> int:
    """Processes of the launch on all machines together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))
