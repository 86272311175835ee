"""Memory that ran out, known by its error and told in words a person can act on.

In goes whatever torch, a library or the host's allocator raises. `micro_batches` cuts steps and evaluations where it
can; what runs out anywhere else (the base being loaded, answers, an optimizer's states) comes out as one PlaceError.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from finetune.errors import FinetuneError, PlaceError

__all__ = ["find_out_of_memory", "first_line", "is_out_of_memory", "telling_full_memory"]

# Of allocators, and of libraries that allocate by themselves; accelerate's own list (1.15) is without the latter.
_WORDS = (" out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):  # of a file that is to be mapped
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def find_out_of_memory(error: BaseException) -> BaseException | None:
    """Find the error that says so among an error and those behind it; None where memory did not run out."""
    link: BaseException | None = error
    while link is not None and not is_out_of_memory(link):
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return link


def first_line(error: BaseException) -> str:
    """The first line of an error's words, or its kind where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def telling_full_memory(*, trains: bool = True) -> Iterator[None]:
    """Translate memory that runs out where nothing can be cut into fewer rows.

    Args:
        trains: whether what would make a training run smaller is of any help.

    Raises:
        PlaceError: it did; with what would help. What is told in words already passes as it is.
    """
    try:
        yield
    except FinetuneError:
        raise
    except Exception as error:
        found = find_out_of_memory(error)
        if found is None:
            raise
        of_training = (
            "\n  Less trained: adapter.r, adapter.target_modules"
            "\n  Smaller states of the optimizer: training.optim=adamw_8bit (a run that has begun keeps its own)"
            "\n  Checkpoints saved so far are whole; go on with --resume."
        )
        raise PlaceError(
            f"Memory ran out ({first_line(found)}), at a point where the run cannot retry with fewer rows.\n"
            "  Something else may hold it: nvidia-smi names the processes on a GPU, top those of the host.\n"
            "  Where questions are answered: evaluation.batch_size, evaluation.max_new_tokens; rloo and grpo:\n"
            "  training.max_completion_length, training.per_device_train_batch_size\n"
            f"  A smaller base: model.quantization=nf4{of_training if trains else ''}"
        ) from error
