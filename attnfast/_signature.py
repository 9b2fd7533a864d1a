"""What ``help`` shows of a public function: the signature that a person would write."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def plain_signature(function: F) -> F:
    """Show a function without its types, whose aliases fill a screen, and without ``*extra``
    and ``**unknown``, which are there to be refused with advice.

    Type checkers read the types in the source, readers those in the docstring.
    """
    signature = inspect.signature(function)
    shown = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
        if parameter.name not in ("extra", "unknown")
    ]
    plain = signature.replace(parameters=shown, return_annotation=inspect.Signature.empty)
    function.__signature__ = plain  # type: ignore[attr-defined]
    return function
