"""What every section of a recipe is, and the kinds of value that several of them hold."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["ONE_LINE", "Name", "Section"]

# A line break in a name would forge lines of a log or a message.
ONE_LINE = r"^[^\r\n]*$"
# A text that names something: an empty one is a slip.
Name = Annotated[str, Field(min_length=1, pattern=ONE_LINE)]


class Section(BaseModel):
    """A frozen group of settings; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())
