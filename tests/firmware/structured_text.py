"""Runs a function block of structured text, as far as ours use the language.

Whole numbers wrap as their declared types do, an INT that leaves its range or an index out
of its array is an error, and a word that is not known here is too.
"""

from __future__ import annotations

import re
from typing import Any

_TOKEN = re.compile(
    r"\s+|\(\*.*?\*\)|(?P<token>T#\d+S|[A-Z]+#16#[0-9A-Fa-f_]+|\d+|[A-Za-z_]\w*|:=|<>|<=|>=|\.\.|[-+=<>()\[\].,;:])",
    re.DOTALL,
)
_BITS = {"UDINT": 32, "UINT": 16, "WORD": 16}
_LEVELS = (("OR",), ("AND",), ("=", "<>", "<", "<=", ">", ">="), ("+", "-"))


class Ton:
    """The standard's on-delay timer, on a clock of the test's."""

    def __init__(self, clock):
        self._clock, self._since = clock, None
        self.Q = False

    def call(self, IN, PT):  # noqa: N803  # the standard's names
        if not IN:
            self._since = None
        elif self._since is None:
            self._since = self._clock()
        self.Q = IN and self._clock() - self._since >= PT


class Block:
    """One function block; inputs are given by name, everything is read as an attribute."""

    def __init__(self, text, clock=lambda: 0.0):
        self._tokens, at = [], 0
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                raise SyntaxError(f"not understood: {text[at : at + 20]!r}")
            if found["token"]:
                self._tokens.append(found["token"])
            at = found.end()
        self._at, self._types, self._bounds = 0, {}, {}
        self.values: dict[str, Any] = {}
        self._take("FUNCTION_BLOCK")
        self.name = self._next()
        while self._peek().startswith("VAR"):
            self._declare(clock)
        self._body = self._statements("END_FUNCTION_BLOCK")

    def __call__(self, **inputs):
        for name, value in inputs.items():
            self._assign(name, None, value)
        self._run(self._body)
        return self

    def __getattr__(self, name):
        try:
            return self.__dict__["values"][name]
        except KeyError:
            raise AttributeError(name) from None

    # -- reading ------------------------------------------------------------------------

    def _peek(self):
        return self._tokens[self._at]

    def _next(self):
        self._at += 1
        return self._tokens[self._at - 1]

    def _take(self, *wanted):
        for word in wanted:
            if (found := self._next()) != word:
                raise SyntaxError(f"{word} expected, not {found}")

    def _declare(self, clock):
        self._next()
        while self._peek() != "END_VAR":
            name = self._next()
            self._take(":")
            kind = self._next()
            if kind == "ARRAY":
                self._take("[")
                low = int(self._next())
                self._take("..")
                high = int(self._next())
                self._take("]", "OF")
                kind = self._next()
                self._bounds[name] = (low, high)
                self.values[name] = [0] * (high - low + 1)
            else:
                self.values[name] = Ton(clock) if kind == "TON" else kind == "BOOL" and False
            self._types[name] = kind
            self._take(";")
        self._take("END_VAR")

    def _statements(self, *ends):
        found = []
        while self._peek() not in ends:
            found.append(self._statement())
        if len(ends) == 1:
            self._take(ends[0])
        return found

    def _statement(self):
        word = self._next()
        if word == "IF":
            branches = [(self._condition(), self._statements("ELSIF", "ELSE", "END_IF"))]
            while (word := self._next()) == "ELSIF":
                branches.append((self._condition(), self._statements("ELSIF", "ELSE", "END_IF")))
            otherwise = self._statements("END_IF") if word == "ELSE" else []
            self._take(";")
            return "if", branches, otherwise
        if word == "FOR":
            name = self._next()
            self._take(":=")
            low = self._expression()
            self._take("TO")
            high = self._expression()
            self._take("DO")
            body = self._statements("END_FOR")
            self._take(";")
            return "for", name, low, high, body
        if self._peek() == "(":
            self._take("(")
            given = {}
            while True:
                name = self._next()
                self._take(":=")
                given[name] = self._expression()
                if self._next() == ")":
                    break
            self._take(";")
            return "call", word, given
        index = None
        if self._peek() == "[":
            self._take("[")
            index = self._expression()
            self._take("]")
        self._take(":=")
        value = self._expression()
        self._take(";")
        return "set", word, index, value

    def _condition(self):
        found = self._expression()
        self._take("THEN")
        return found

    def _expression(self, level=0):
        if level == len(_LEVELS):
            return self._atom()
        left = self._expression(level + 1)
        while self._peek() in _LEVELS[level]:
            left = (self._next(), left, self._expression(level + 1))
        return left

    def _atom(self):  # noqa: PLR0911  # one for each form
        word = self._next()
        if word == "(":
            inner = self._expression()
            self._take(")")
            return inner
        if word in ("TRUE", "FALSE"):
            return "value", word == "TRUE", "BOOL"
        if word.isdigit():
            return "value", int(word), None
        if word.startswith("T#"):
            return "value", float(word[2:-1]), "TIME"
        if "#16#" in word:
            kind, _, digits = word.partition("#16#")
            return "value", int(digits, 16), kind
        if self._peek() == "[":
            self._take("[")
            index = self._expression()
            self._take("]")
            return "item", word, index
        if self._peek() == ".":
            self._take(".")
            return "member", word, self._next()
        return "name", word

    # -- running ------------------------------------------------------------------------

    def _run(self, statements):
        for statement in statements:
            match statement:
                case ("if", branches, otherwise):
                    chosen = next((body for test, body in branches if self._of(test)[0]), otherwise)
                    self._run(chosen)
                case ("for", name, low, high, body):
                    for value in range(self._of(low)[0], self._of(high)[0] + 1):
                        self.values[name] = value
                        self._run(body)
                case ("call", name, given):
                    self.values[name].call(**{key: self._of(one)[0] for key, one in given.items()})
                case ("set", name, index, value):
                    self._assign(
                        name, None if index is None else self._of(index)[0], self._of(value)[0]
                    )

    def _assign(self, name, index, value):
        kind = self._types[name]
        if (kind == "BOOL") != isinstance(value, bool):
            raise TypeError(f"{name} : {kind} := {value!r}")
        value = _fit(kind, value)
        if index is None:
            self.values[name] = value
        else:
            self.values[name][self._place(name, index)] = value

    def _place(self, name, index):
        low, high = self._bounds[name]
        if not low <= index <= high:
            raise IndexError(f"{name}[{index}]")
        return index - low

    def _of(self, node):  # noqa: PLR0911  # one for each form
        match node:
            case ("value", value, kind):
                return value, kind
            case ("name", name):
                return self.values[name], self._types[name]
            case ("item", name, index):
                return self.values[name][self._place(name, self._of(index)[0])], self._types[name]
            case ("member", name, member):
                return getattr(self.values[name], member), "BOOL"
        sign, left, right = node
        (one, kind), (other, other_kind) = self._of(left), self._of(right)
        if None not in (kind, other_kind) and kind != other_kind:
            raise TypeError(f"{kind} {sign} {other_kind}")
        both = kind or other_kind
        match sign:
            case "OR":
                return one | other, both
            case "AND":
                return one & other, both
            case "+":
                return _fit(both, one + other), both
            case "-":
                return _fit(both, one - other), both
        return {
            "=": one == other,
            "<>": one != other,
            "<": one < other,
            "<=": one <= other,
            ">": one > other,
            ">=": one >= other,
        }[sign], "BOOL"


def _fit(kind, value):
    if kind in _BITS:
        return value & ((1 << _BITS[kind]) - 1)
    if kind == "INT" and not -32_768 <= value <= 32_767:
        raise OverflowError(f"INT {value}")
    return value
