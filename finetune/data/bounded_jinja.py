"""Jinja's sandbox with bounds: no single operation of a template makes a text or list beyond any that is wanted.

In go operands, filters' and methods' arguments before they are used; out comes a refusal (`SecurityError`) or the
result that Jinja itself would give. A million characters are allowed, and four times what the template was given beside
them, so that a long row passes. What many operations make together is not counted, but for the text rendered.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from string import Formatter
from types import BuiltinMethodType
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS, do_batch, do_center, do_format, do_indent, do_replace, make_attrgetter, sync_do_join
from jinja2.runtime import Context, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEscapeFormatter, SandboxedFormatter
from markupsafe import Markup

__all__ = ["BoundedEnvironment", "check_size", "find_limit", "to_measured"]

_MAX_EXPONENT = 64
_MAX_CHARACTERS = 1_000_000
_SHARE_OF_GIVEN = 4  # quotes and line breaks escaped twice, as in JSON within JSON

# The name is none that a template can write.
_LIMIT = "\ue000limit"
_PRINTF = re.compile(r"%(?:\([^)]*\))?[-+ #0]*(\d+|\*)?(?:\.(\d+|\*))?")
_TAKE_A_WIDTH = frozenset({"ljust", "rjust", "center", "zfill", "expandtabs", "to_bytes"})


def to_measured(values: Mapping[str, Any]) -> dict[str, Any]:
    """Put beside the values of a template how many characters its operations may make."""
    given, left = 0, [values]
    while left:
        value: Any = left.pop()
        if isinstance(value, str):
            given += len(value)
        elif isinstance(value, Mapping):
            left += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            left += value
    return {**values, _LIMIT: _MAX_CHARACTERS + _SHARE_OF_GIVEN * given}


def find_limit(values: Mapping[str, Any] | Context) -> int:
    """Find how many characters may be made: of what `to_measured` gave, or within a rendering."""
    limit: int = values.get(_LIMIT, _MAX_CHARACTERS)
    return limit


def check_size(size: int, limit: int = _MAX_CHARACTERS) -> None:
    """Check the size of a text or list that is about to be made, or was.

    Raises:
        jinja2.exceptions.SecurityError: it is beyond the limit.
    """
    if size > limit:
        raise SecurityError(f"a text or list of more than {limit:,} is not made")


class _Generator(CodeGenerator):
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """Let the environment join what stands between `~`."""
        self.write("environment.join_texts(context, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _BoundedFields(Formatter):
    """Checks the width and precision of each field, those that came from arguments too."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        _check_numbers(re.findall(r"\d+", format_spec))
        return super().format_field(value, format_spec)


class _BoundedFormatter(_BoundedFields, SandboxedFormatter):
    pass


class _BoundedEscapeFormatter(_BoundedFields, SandboxedEscapeFormatter):
    pass


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which no single operation can fill the memory either."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})
    code_generator_class = _Generator

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.filters |= {
            "batch": _batch, "center": _center, "format": _format, "indent": _indent, "join": _join,
            "replace": _replace, "wordwrap": _wordwrap,
        }  # fmt: skip
        del self.globals["lipsum"]  # as much random text as is asked for

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute what a template may want.

        Raises:
            jinja2.exceptions.SecurityError: it would be larger than any text.
        """
        if operator == "**" and not (isinstance(right, int | float) and abs(right) <= _MAX_EXPONENT):
            raise SecurityError(f"a power of {_MAX_EXPONENT} at most is computed")
        if operator == "*":
            for repeated, times in ((left, right), (right, left)):
                if isinstance(repeated, str | bytes | list | tuple) and isinstance(times, int):
                    check_size(len(repeated) * times)
        if operator == "+" and isinstance(left, str | bytes | list | tuple) and isinstance(right, type(left)):
            check_size(len(left) + len(right), find_limit(context))
        if operator == "%" and isinstance(left, str | bytes):
            _check_printf(left, right)
            made = super().call_binop(context, operator, left, right)
            check_size(len(made), find_limit(context))
            return made
        return super().call_binop(context, operator, left, right)

    def join_texts(self, context: Context, parts: tuple[Any, ...]) -> str:
        """Join what stands between `~`."""
        check_size(sum(len(part) if isinstance(part, str) else 0 for part in parts), find_limit(context))
        return markup_join(parts) if context.eval_ctx.autoescape else str_join(parts)

    def call(self, context: Context, function: Any, /, *arguments: Any, **named: Any) -> Any:
        """Call what the sandbox lets a template call; of texts' methods those that make larger ones are checked."""
        if isinstance(function, BuiltinMethodType) and isinstance(function.__self__, str | bytes | int):
            arguments = _check_method(function.__self__, function.__name__, arguments, named, find_limit(context))
        return super().call(context, function, *arguments, **named)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Put the checked `format` or `format_map` of a text in place of its own; None for anything else."""
        if super().wrap_str_format(value) is None:
            return None
        text = value.__self__
        formatter = (
            _BoundedEscapeFormatter(self, escape=text.escape) if isinstance(text, Markup) else _BoundedFormatter(self)
        )

        def fill_in(*arguments: Any, **named: Any) -> str:
            if value.__name__ == "format_map":
                (named,), arguments = arguments, ()
            made: str = type(text)(formatter.vformat(text, arguments, named))
            return made

        return fill_in


def _check_numbers(numbers: Iterable[Any]) -> None:
    for number in numbers:
        if isinstance(number, str | bytes) and number.isdigit():
            check_size(int(number[-30:]))
        elif isinstance(number, int):
            check_size(number)


def _check_printf(form: str | bytes, filling: Any) -> None:
    found = _PRINTF.findall(form if isinstance(form, str) else form.decode("latin-1"))
    widths = [width for pair in found for width in pair]
    _check_numbers(widths)
    if "*" in widths:
        _check_numbers(filling if isinstance(filling, tuple) else [filling])


def _check_method(
    text: Any, name: str, arguments: tuple[Any, ...], named: Mapping[str, Any], limit: int
) -> tuple[Any, ...]:
    """Check a method of a text; the arguments come back, with an iterator among them made a list."""
    if name in _TAKE_A_WIDTH:
        widths = [width for width in (*arguments, *named.values()) if isinstance(width, int)]
        tabs = text.count("\t" if isinstance(text, str) else b"\t") if name == "expandtabs" else 1
        _check_numbers(width * tabs for width in widths)
    elif name == "join" and len(arguments) == 1:
        pieces = [*arguments[0]]
        _check_joined(text, pieces, limit)
        return (pieces,)
    elif name == "replace" and len(arguments) >= 2:
        _check_replaced(text, arguments[0], arguments[1], limit)
    elif name == "translate" and arguments and isinstance(arguments[0], Mapping):
        longest = max((len(put) for put in arguments[0].values() if isinstance(put, str)), default=0)
        check_size(len(text) * longest, limit)
    return arguments


def _check_joined(between: Any, pieces: list[Any], limit: int) -> None:
    check_size(len(between) * len(pieces) + sum(len(piece) for piece in pieces if isinstance(piece, str)), limit)


def _check_replaced(text: Any, old: Any, new: Any, limit: int) -> None:
    check_size(len(text) + text.count(old) * (len(new) - len(old)), limit)


def _batch(value: Iterable[Any], linecount: int, fill_with: Any = None) -> Any:
    if fill_with is not None:
        check_size(linecount)
    return do_batch(value, linecount, fill_with)


def _center(value: str, width: int = 80) -> str:
    check_size(width)
    return do_center(value, width)


def _format(value: str, *arguments: Any, **named: Any) -> str:
    _check_printf(str(value), (*arguments, *named.values()))
    made = do_format(value, *arguments, **named)
    check_size(len(made))
    return made


def _indent(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    num_lines = len(str(s).splitlines()) + 1
    check_size(num_lines * (len(width) if isinstance(width, str) else width))
    return do_indent(s, width, first, blank)


@pass_context
def _join(context: Context, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        value = map(make_attrgetter(context.environment, attribute), value)
    pieces = [*value]
    _check_joined(str(d), pieces, find_limit(context))
    return sync_do_join(context.eval_ctx, pieces, d)


@pass_context
def _replace(context: Context, s: str, old: str, new: str, count: int | None = None) -> str:
    _check_replaced(str(s), str(old), str(new), find_limit(context))
    return do_replace(context.eval_ctx, s, old, new, count)


@pass_context
def _wordwrap(context: Context, s: str, *arguments: Any, **named: Any) -> str:
    longest = max((len(text) for text in (*arguments, *named.values()) if isinstance(text, str)), default=1)
    check_size((len(s) + 1) * longest, find_limit(context))
    wrapped: str = FILTERS["wordwrap"](context.environment, s, *arguments, **named)
    return wrapped
