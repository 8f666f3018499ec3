"""The last look at an answer that a grammar was to hold: does it have its shape?

The engine does not say when it could not apply a grammar; it answers without one. The narrowed schema from which the
grammar was made tells afterwards. Bounds that engines and validators compute differently are left out: steps of
decimal numbers, formats, and the number of an object's invented keys, which a model may write twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import jsonschema_rs
import orjson

_LEFT_OUT: Final = frozenset({"multipleOf", "format", "minProperties", "maxProperties"})
_NAMED: Final = frozenset({"properties", "patternProperties", "$defs"})


class Shape:
    """What an answer must be.

    Args:
        schema: as `schema.bounded` narrowed it.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = _comparable(schema)
        self._validator: Any = None

    def problem(self, text: str) -> str | None:
        """Why a text is not JSON of this shape; None when it is."""
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            return f"it is not JSON ({error})"
        try:
            if self._validator is None:
                self._validator = jsonschema_rs.validator_for(self._schema)
            self._validator.validate(value)
        except jsonschema_rs.ValidationError as error:
            return str(error.message)
        except ValueError:
            return None  # a schema that the validator does not take says nothing about the answer
        return None


def _comparable(schema: Any, *, names: bool = False) -> Any:
    """The schema without what is left out; under `properties` and the like keys are names, not keywords."""
    if isinstance(schema, Mapping):
        kept = {key: value for key, value in schema.items() if names or key not in _LEFT_OUT}
        return {
            key: value if key == "enum" and not names else _comparable(value, names=key in _NAMED and not names)
            for key, value in kept.items()
        }
    return [_comparable(value) for value in schema] if isinstance(schema, list) else schema
