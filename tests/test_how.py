"""The options that measuring, scoring and drawing share are the same wherever they stand."""

import inspect
import typing
from dataclasses import MISSING, FrozenInstanceError, fields

import pytest

from oodbench.how import How, Options
from oodbench.options import _common


def test_the_keywords_of_public_functions_are_the_fields() -> None:
    assert typing.get_type_hints(Options) == typing.get_type_hints(How)
    assert not Options.__required_keys__


def test_the_commands_options_are_fields_with_the_same_defaults() -> None:
    defaults = {field.name: field.default for field in fields(How)}
    given = {name: each.default for name, each in inspect.signature(_common).parameters.items()}
    assert given.keys() == defaults.keys() - {"progress", "training_seed"}
    assert {name: default or None for name, default in given.items()} == {
        name: defaults[name] or None for name in given
    }
    assert MISSING not in defaults.values()


def test_nobody_changes_them_on_the_way() -> None:
    with pytest.raises(FrozenInstanceError):
        How().seed = 1  # type: ignore[misc]


def test_a_keyword_that_is_none_is_told() -> None:
    with pytest.raises(TypeError, match="sede"):
        How(**{"sede": 1})  # type: ignore[arg-type]
