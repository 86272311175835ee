"""What every section of a recipe is, and the kinds of value that several of them hold."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Name", "Section"]

# A text that names something: an empty one is a slip.
# A line break in it would forge lines of a log or a message.
Name = Annotated[str, Field(min_length=1, pattern=r"^[^\r\n]*$")]


class Section(BaseModel):
    """A frozen group of settings; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())
