"""Memory that ran out is known whoever says so, and is told with what would help where nothing can be cut."""

import errno

import pytest
import torch

from finetune.errors import DataError, PlaceError
from finetune.objectives.full_memory import is_out_of_memory, telling_full_memory

SAID = "CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError(SAID), MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory"),
     RuntimeError("CUDA error: out of memory"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")],
    ids=repr,
)  # fmt: skip
def test_memory_that_ran_out_is_told_with_what_would_help(error):
    said = r"^Memory ran out \(.+(?s:.*)evaluation\.batch_size(?s:.*)--resume"
    with pytest.raises(PlaceError, match=said) as told, telling_full_memory():
        raise error
    assert told.value.__cause__ is error
    assert len(str(told.value).splitlines()) <= 15


def test_it_is_found_behind_an_error_of_a_library():
    with pytest.raises(PlaceError, match=r"2\.00 GiB"), telling_full_memory():
        try:
            raise torch.OutOfMemoryError(SAID)
        except RuntimeError as error:
            raise ValueError("the model cannot be dispatched") from error


@pytest.mark.parametrize(
    "error", [DataError("a row holds the words out of memory"), OSError(errno.ENOENT, "gone"), RuntimeError("a shape")]
)
def test_what_is_told_in_words_already_and_other_errors_pass_as_they_are(error):
    with pytest.raises(type(error)) as passed, telling_full_memory():
        raise error
    assert passed.value is error
    assert not is_out_of_memory(error)
