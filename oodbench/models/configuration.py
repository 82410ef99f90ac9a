"""Whether a constructor takes a configuration, told before it is called."""

import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from numbers import Integral, Real
from typing import Any

from oodbench.errors import OodbenchError
from oodbench.registry import hint

__all__ = ["check_configuration"]

# What an annotation takes, and in words; values of any other are the constructor's to judge.
_KINDS: dict[Any, tuple[type, str]] = {
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: (str, "a text"),
    bool: (bool, "true or false"),
    Mapping: (Mapping, "a table"),
    types.NoneType: (types.NoneType, "none"),
}


def check_configuration(name: str, build: Callable[..., Any], config: Mapping[str, Any]) -> None:
    """`OodbenchError` unless `build`, which is called `name`, takes these keywords, each of the kind it declares.

    `build` is a class, a class method, a function, or a partial of one. The first argument (an image shape, say) is
    always positional.
    """
    given: Mapping[str, Any] = {}
    if isinstance(build, functools.partial):
        given, build = build.keywords, build.func
    known: dict[str, Any] = {}
    for function, positional in _reached(build):
        parameters = list(inspect.signature(function).parameters.values())
        kinds = _annotations(function)
        named = [p.name for p in parameters[positional:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        known = {key: kinds.get(key, Any) for key in named if key not in given} | known
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    else:
        known = dict.fromkeys(config, Any) | known  # the others go where nobody can see
    for key, value in config.items():
        if key not in known:
            raise OodbenchError(f"{name} takes no {key!r}: {hint(key, sorted(known)) if known else 'leave it out.'}")
        union = typing.get_origin(known[key]) in (typing.Union, types.UnionType)
        wanted = [typing.get_origin(kind) or kind for kind in (typing.get_args(known[key]) if union else [known[key]])]
        if not any(kind not in _KINDS or _is(value, _KINDS[kind][0]) for kind in wanted):
            words = " or ".join(_KINDS[kind][1] for kind in wanted if kind is not types.NoneType)
            raise OodbenchError(f"{name} takes {words} for {key!r}, not {value!r}.")


def _reached(build: Callable[..., Any]) -> Iterator[tuple[Callable[..., Any], int]]:
    """The functions that keywords reach, as each hands on what it does not name, and how many arguments come first."""
    if isinstance(build, type):
        yield from _along(build, "__init__")
        yield from _along(build, "layers_on")  # to which a flow on vectors hands them
    elif inspect.ismethod(build):
        yield from _along(build.__self__, build.__name__)
    else:
        yield build, 1


def _along(owner: Any, method: str) -> Iterator[tuple[Callable[..., Any], int]]:
    for base in owner.__mro__:
        if method in vars(base) and hasattr(base, "layers_on") == hasattr(owner, "layers_on"):
            function = vars(base)[method]
            yield getattr(function, "__func__", function), 2


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except Exception:  # a plugin's may name what is imported for type checkers alone
        return {}


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
