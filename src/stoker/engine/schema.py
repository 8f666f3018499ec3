"""Narrow a caller's JSON Schema until a small model cannot run on inside it.

A grammar made of a plain schema lets a model repeat itself within a string, a number, an array, invented keys or a
recursive type until the token limit. `bounded` answers with a schema that accepts a part of what the given one accepts,
in which all of those end, written in the few forms that LLGuidance (the grammar engine in llama.cpp) surely compiles:

    {"anyOf": [...]}   {"enum": [...]}   {"$ref": "#/$defs/..."}   or one `type` with bounds of its own

Recursion is unrolled into levels (`Node` at level 3 refers to `Node` at level 2), so that it ends too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from stoker.config import GenerationConfig
from stoker.engine.schema_forms import (
    KEYWORDS_OF,
    TYPES,
    Form,
    joined,
    literal,
    modern,
    pattern_problem,
    type_of,
)
from stoker.engine.schema_limits import (
    FREE_DEPTH,
    ITEMS_CEILING,
    KEY_CHARS,
    MAX_DEPTH,
    MAX_JOINED,
    MAX_LITERAL_CHARS,
    MAX_LITERALS,
    MAX_NODES,
    MAX_RAW,
    PATTERN_WEIGHT,
    PROPERTIES_CEILING,
    RECURSION,
    Budget,
)
from stoker.engine.schema_references import References, walk
from stoker.engine.schema_scalars import count, number, string
from stoker.errors import RequestError

_SHOWN_PLACE: Final = 160  # characters of where something is, in errors
_FREE_KEY: Final = f'^[^"\\\\\\x00-\\x1f]{{1,{KEY_CHARS}}}$'


def bounded(
    schema: Mapping[str, Any],
    bounds: GenerationConfig,
    param: str = "response_format",
    budget: Budget | None = None,
) -> dict[str, Any]:
    """A schema that accepts a bounded part of what `schema` accepts.

    Args:
        schema: JSON Schema of draft 4 to 2020-12, or OpenAPI 3's; local `$ref` only.
        bounds: what strings, arrays and free-form objects get where the schema sets no bound.
        param: the request field to name in errors.
        budget: shared by the schemas of one request; None for a schema that comes alone.

    Raises:
        RequestError: a keyword that cannot be held, a remote or broken `$ref`, a schema over the limits of this module,
            or one that nothing finite satisfies.
    """
    budget = Budget() if budget is None else budget
    for _ in walk(schema):
        budget.raw += 1
        if budget.raw > MAX_RAW:
            raise RequestError(
                f"schema: has over {MAX_RAW} parts; simplify it, or offer fewer `enum` values", param=param
            )
    narrower = _Narrower(schema, bounds, param, budget)
    root = narrower.node(schema, RECURSION, "schema", 0)
    if root is None:
        raise RequestError("schema: nothing finite satisfies it; look for contradicting keywords", param=param)
    return {**root, "$defs": narrower.definitions} if narrower.definitions else root


class _Narrower:
    """One pass over one schema: the counters of its limits and the definitions it needs."""

    def __init__(self, root: Mapping[str, Any], bounds: GenerationConfig, param: str, budget: Budget) -> None:
        self.bounds = bounds
        self.budget = budget
        self.param = param
        self.definitions: dict[str, Any] = {}
        self._names: dict[tuple[str, int], str | None] = {}
        self.references = References(root, param)

    def refuse(self, where: str, problem: str) -> RequestError:
        return RequestError(f"{where}: {problem}", param=self.param)

    def node(self, schema: Any, level: int, where: str, depth: int) -> Form | None:
        """The narrow form of a subschema; None when nothing (finite, within this level) satisfies it."""
        where = where[-_SHOWN_PLACE:]
        self.budget.nodes += 1
        if self.budget.nodes > MAX_NODES:
            raise self.refuse("schema", f"is too large (over {MAX_NODES} parts once unrolled); simplify it")
        if depth > MAX_DEPTH:
            raise self.refuse(where, f"lies deeper than {MAX_DEPTH} levels; flatten the schema")
        if schema is False or level < 0:
            return None
        if schema is True:
            return self.anything(FREE_DEPTH)
        form = self.modern(schema, where)
        if set(form) == {"$ref"}:
            return self.reference(form["$ref"], level, where, depth)
        plain, choices, level = self.opened(form, level, where, depth)
        if level < 0:
            return None
        if choices:
            first, *others = choices
            rest = [plain, *({"anyOf": other} for other in others)]
            return self.either(
                [{"allOf": [*rest, option]} if any(rest) else option for option in first], level, where, depth
            )
        return self.plain(plain, level, where, depth)

    def modern(self, schema: Any, where: str) -> Form:
        if not isinstance(schema, Mapping) or not all(isinstance(key, str) for key in schema):
            raise self.refuse(where, "must be a JSON Schema: an object, true or false")
        return modern(schema, where, self.param)

    def opened(self, form: Form, level: int, where: str, depth: int) -> tuple[Form, list[Sequence[Any]], int]:
        """Resolve `$ref` and `allOf` at the top of a form: the joined rest, the `anyOf` lists
        that apply, the level left.
        """
        pieces: list[Form] = [{key: value for key, value in form.items() if key not in {"$ref", "allOf", "anyOf"}}]
        choices: list[Sequence[Any]] = []
        if "anyOf" in form:
            choices.append(form["anyOf"])
        others: list[Any] = [*form.get("allOf", ())]
        if "$ref" in form:
            if self.references.is_recursive(form["$ref"], where):
                level -= 1
            if level >= 0:
                others.append(self.references.target(form["$ref"], where))
        for other in others:
            self.budget.nodes += 1
            if self.budget.nodes > MAX_NODES or depth > MAX_DEPTH:
                raise self.refuse(where, "refers to itself, or is too large once unrolled; simplify it")
            if other is False:
                return {}, [], -1
            if other is True:
                continue
            plain, more, left = self.opened(self.modern(other, where), level, where, depth + 1)
            self.budget.joined += sum(len(plain.get(key, ())) for key in ("properties", "enum", "required"))
            if self.budget.joined > MAX_JOINED:
                raise self.refuse(where, "joins too much with `allOf` or beside `$ref`; write it out")
            level = min(level, left)
            pieces.append(plain)
            choices += more
        return joined(pieces, where, self.param), choices, level

    def either(self, options: Sequence[Any], level: int, where: str, depth: int) -> Form | None:
        different: dict[str, Form] = {}
        for index, option in enumerate(options):
            form = self.node(option, level, f"{where}.anyOf[{index}]", depth + 1)
            if form is not None:
                different.setdefault(json.dumps(form, sort_keys=True), form)
        narrow = list(different.values())
        if len(narrow) > 1:
            return {"anyOf": narrow}
        return narrow[0] if narrow else None

    # References

    def reference(self, pointer: Any, level: int, where: str, depth: int) -> Form | None:
        target = self.references.target(pointer, where)
        if self.references.is_recursive(pointer, where):
            level -= 1
        key = (pointer, level)
        if key not in self._names:
            name = f"d{len(self._names)}"
            self._names[key] = name
            form = self.node(target, level, pointer, depth + 1)
            if form is None:
                self._names[key] = None
            else:
                self.definitions[name] = form
        name_or_none = self._names[key]
        return None if name_or_none is None else {"$ref": f"#/$defs/{name_or_none}"}

    # Values

    def plain(self, form: Form, level: int, where: str, depth: int) -> Form | None:
        """A form without references and choices: literals, or each of its types."""
        types = self.types(form, where)
        if "enum" in form:
            return self.literals(form["enum"], types, where)
        if types is None:
            types = [kind for kind in KEYWORDS_OF if KEYWORDS_OF[kind] & form.keys()]
            if not types:
                return self.anything(FREE_DEPTH)
        narrow = [self.typed(kind, form, level, where, depth) for kind in types]
        kept = [one for one in narrow if one is not None]
        if len(kept) > 1:
            return {"anyOf": kept}
        return kept[0] if kept else None

    def types(self, form: Form, where: str) -> list[str] | None:
        if "type" not in form:
            return None
        given = form["type"]
        types = [given] if isinstance(given, str) else given
        if not isinstance(types, list) or not all(isinstance(kind, str) and kind in TYPES for kind in types):
            raise self.refuse(where, f"`type` must be among {', '.join(TYPES)}")
        return [kind for kind in dict.fromkeys(types) if not (kind == "integer" and "number" in types)]

    def literals(self, values: Any, types: list[str] | None, where: str) -> Form | None:
        self.budget.literals += len(values)
        if self.budget.literals > MAX_LITERALS:
            raise self.refuse(where, f"over {MAX_LITERALS} `enum` values in the schema; offer fewer")
        if types is not None:
            values = [v for v in values if type_of(v) in types or (type_of(v) == "integer" and "number" in types)]
        unique: list[Any] = []
        texts: set[str] = set()
        for value in values:
            text = literal(value)
            if text not in texts:
                texts.add(text)
                unique.append(value)
        self.spend(sum(map(len, texts)), where)
        return {"enum": unique} if unique else None

    def spend(self, characters: int, where: str) -> None:
        self.budget.characters += characters
        if self.budget.characters > MAX_LITERAL_CHARS:
            raise self.refuse(
                where, f"over {MAX_LITERAL_CHARS} characters of names and values in the schema; shorten it"
            )

    def typed(self, kind: str, form: Form, level: int, where: str, depth: int) -> Form | None:
        match kind:
            case "string":
                self.spend(PATTERN_WEIGHT * len(str(form.get("pattern", ""))), where)
                return string(form, self.bounds, where, self.param)
            case "integer" | "number":
                return number(kind, form, where, self.param)
            case "array":
                return self.array(form, level, where, depth)
            case "object":
                return self.object(form, level, where, depth)
            case _:
                return {"type": kind}

    def array(self, form: Form, level: int, where: str, depth: int) -> Form | None:
        least = count(form, "minItems", where, self.param) or 0
        most = count(form, "maxItems", where, self.param)
        if least > ITEMS_CEILING:
            raise self.refuse(where, f"`minItems` is over {ITEMS_CEILING}, more than an answer holds")
        most = max(self.bounds.json_array_items, least) if most is None else min(most, ITEMS_CEILING)
        prefix: list[Form] = []
        given = form.get("prefixItems", [])
        for index, schema in enumerate(given[:most]):
            item = self.node(schema, level, f"{where}[{index}]", depth + 1)
            if item is None:
                most = index
                break
            prefix.append(item)
        rest: Form | None = None
        if most > len(prefix):
            # After a tuple more items are allowed by the standard; they are made only where `minItems` asks for them.
            more = form.get("items", not given or least > len(prefix))
            rest = self.node(more, level, f"{where}.items", depth + 1)
            most = len(prefix) if rest is None else most
        if least > most:
            return None
        narrow: Form = {"type": "array", "items": False if rest is None else rest, "minItems": least, "maxItems": most}
        return {**narrow, "prefixItems": prefix} if prefix else narrow

    def object(self, form: Form, level: int, where: str, depth: int) -> Form | None:
        properties = form.get("properties", {})
        required = set(form.get("required", ()))
        keys = self.keys(form, where)
        additional = form.get("additionalProperties", True)
        if isinstance(keys, list):
            allowed = set(keys)
            properties = {**dict.fromkeys(keys, additional), **{k: v for k, v in properties.items() if k in allowed}}
            keys = None
        undeclared = [name for name in dict.fromkeys(form.get("required", ())) if name not in properties]
        properties = {**properties, **dict.fromkeys(undeclared, additional)}
        named = "properties" in form and form.get("additionalProperties", False) is False
        if not properties and not (named and "patternProperties" not in form):
            return self.free_object(form, keys, level, where, depth)
        values: dict[str, Form] = {}
        for name, schema in properties.items():
            self.spend(len(name), where)
            value = self.node(schema, level, f"{where}.{name[:60]}", depth + 1)
            if value is not None:
                values[name] = value
            elif name in required:
                return None
        return self.closed_object(form, values, required, where)

    def closed_object(self, form: Form, narrow: dict[str, Form], required: set[str], where: str) -> Form | None:
        """An object of named properties and no others, which also is where extra ones would be allowed."""
        least = count(form, "minProperties", where, self.param) or 0
        most = count(form, "maxProperties", where, self.param)
        optional = [name for name in narrow if name not in required]
        if most is not None:
            surplus = len(narrow) - most
            if surplus > len(optional):
                return None
            dropped = set(optional[len(optional) - surplus :]) if surplus > 0 else set()
            narrow = {name: value for name, value in narrow.items() if name not in dropped}
            optional = [name for name in optional if name not in dropped]
        if least > len(narrow):
            raise self.refuse(where, f"`minProperties` {least} asks for more than the properties that are named")
        enforced = required | set(optional[: max(0, least - (len(narrow) - len(optional)))])
        return {
            "type": "object",
            "properties": narrow,
            "required": [name for name in narrow if name in enforced],
            "additionalProperties": False,
        }

    def free_object(self, form: Form, keys: str | None, level: int, where: str, depth: int) -> Form | None:
        """An object of invented names: at most so many of them, each short."""
        least = count(form, "minProperties", where, self.param) or 0
        most = count(form, "maxProperties", where, self.param)
        most = max(self.bounds.json_object_properties, least) if most is None else min(most, PROPERTIES_CEILING)
        values = form.get("additionalProperties", True)
        if patterns := form.get("patternProperties"):
            if keys is not None:
                raise self.refuse(where, "`propertyNames` beside `patternProperties` cannot be held; use one of them")
            # Overlapping patterns cannot be held; names after the first one are a part of what is allowed.
            keys, values = next(iter(patterns.items()))
            if problem := pattern_problem(keys):
                raise self.refuse(where, f"the pattern {str(keys)[:80]!r} {problem}")
            self.spend(len(keys), where)
        value = self.node(values, level, f"{where}.*", depth + 1) if most > 0 else None
        if value is None or least > most:
            empty: Form = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
            return empty if least == 0 else None
        return {
            "type": "object",
            "patternProperties": {keys or _FREE_KEY: value},
            "additionalProperties": False,
            "minProperties": least,
            "maxProperties": most,
        }

    def keys(self, form: Form, where: str) -> str | list[str] | None:
        """What `propertyNames` allows: a pattern, a list of names, or None for anything."""
        names = form.get("propertyNames", True)
        if names is True or names == {}:
            return None
        narrow = self.node({"type": "string", **names} if isinstance(names, Mapping) else names, 0, where, 0)
        if narrow is None:
            return []
        if "enum" in narrow:
            return [str(name) for name in narrow["enum"]]
        if "anyOf" in narrow or "format" in narrow:
            raise self.refuse(where, "`propertyNames` must be a `pattern` or an `enum` to be held")
        if "pattern" in narrow:
            return str(narrow["pattern"])
        return f"^.{{{narrow.get('minLength', 1)},{min(narrow['maxLength'], KEY_CHARS)}}}$"

    def anything(self, depth: int) -> Form:
        """Any JSON value, with arrays and objects inside one another up to `depth`, each level half as large."""
        name = f"any{depth}"
        if name not in self.definitions:
            self.definitions[name] = {}
            scalars = [
                string({}, self.bounds, "", ""),
                number("number", {}, "", ""),
                {"type": "boolean"},
                {"type": "null"},
            ]
            halved = FREE_DEPTH - depth
            inner = [self.anything_in(depth - 1, halved)] if depth > 0 else []
            self.definitions[name] = {"anyOf": [*scalars, *(form for pair in inner for form in pair)]}
        return {"$ref": f"#/$defs/{name}"}

    def anything_in(self, depth: int, halved: int) -> tuple[Form, Form]:
        value = self.anything(depth)
        items = max(1, self.bounds.json_array_items >> halved)
        properties = max(1, self.bounds.json_object_properties >> halved)
        return (
            {"type": "array", "items": value, "minItems": 0, "maxItems": items},
            {
                "type": "object",
                "patternProperties": {_FREE_KEY: value},
                "additionalProperties": False,
                "minProperties": 0,
                "maxProperties": properties,
            },
        )
