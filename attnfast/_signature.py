"""What ``help`` shows of a public function: the signature that a person would write."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from typing import Any, TypeVar

from ._keywords import refuse_arguments

F = TypeVar("F", bound=Callable[..., Any])

# The names of the options of each function that takes them as ``**options``.
OPTIONS: dict[Callable[..., Any], frozenset[str]] = {}


def plain_signature(function: F) -> F:
    """Show a function without its types, whose aliases fill a screen.

    Type checkers read the types in the source, readers those in the docstring.
    """
    return _show(function, inspect.signature(function).parameters.values())


def takes(table: Any) -> Callable[[F], F]:
    """Show a function with the options of a table and their defaults in place of ``**options``.

    `table` is a `TypedDict` of ``Annotated[type, default]``. What is not in it, and what comes in
    ``*extra``, is for `check_arguments` to refuse.
    """

    def show(function: F) -> F:
        first = [
            parameter
            for parameter in inspect.signature(function).parameters.values()
            if parameter.kind is Parameter.POSITIONAL_OR_KEYWORD
        ]
        options = [
            Parameter(name, Parameter.KEYWORD_ONLY, default=annotation.__metadata__[0])
            for name, annotation in table.__annotations__.items()
        ]
        OPTIONS[function] = frozenset(option.name for option in options)
        return _show(function, [*first, *options])

    return show


def check_arguments(
    function: Callable[..., Any], extra: Sequence[Any], options: Mapping[str, Any]
) -> None:
    """Refuse, with advice, what a function takes neither by position nor by name."""
    if extra or not OPTIONS[function].issuperset(options):
        unknown = {name: x for name, x in options.items() if name not in OPTIONS[function]}
        refuse_arguments(function, extra, unknown)


def _show(function: F, parameters: Any) -> F:
    shown = [parameter.replace(annotation=Parameter.empty) for parameter in parameters]
    function.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    return function
