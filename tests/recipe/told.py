"""What the reader says of a recipe that it refuses."""

from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.errors import RecipeError
from finetune.recipe.reading import read_recipe

Write = Callable[[str], Path]


def message_of(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as error:
        read_recipe(path, overrides)
    return str(error.value)
