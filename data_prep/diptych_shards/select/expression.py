"""Reading expressions such as `width >= 256 and length(caption) > 5`.

SQL's words for what can be asked of one row, and nothing else: no statement, no table, no file, no code. What is read
is a tree of the classes below; `evaluate.py` knows what it means.

    or, and, not     = <> != < <= > >=     between A and B     in (A, B)     is null     like 'a%'     + - * /
    12.5   'text'   true   false   null   name   "a name with spaces"   name(A, B)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from diptych_shards.select.errors import SelectError

MOST_CHARACTERS = 10_000
MOST_NESTED = 30
MOST_DEEP = 100

_TOKEN = re.compile(
    r"""\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
      | (?P<text>'(?:[^']|'')*')
      | (?P<quoted>"(?:[^"]|"")+")
      | (?P<word>[^\W\d]\w*)
      | (?P<sign><=|>=|<>|!=|==|[-+*/=<>(),]))""",
    re.VERBOSE,
)
_COMPARISONS = {"=": "=", "==": "=", "<>": "<>", "!=": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_WORDS = frozenset(("and", "or", "not", "in", "is", "null", "between", "like", "true", "false"))


@dataclass(frozen=True)
class Literal:
    value: float | int | str | bool | None


@dataclass(frozen=True)
class Column:
    name: str


@dataclass(frozen=True)
class Call:
    """An operator or a function, by name, on its operands."""

    name: str
    operands: tuple[Node, ...]
    depth: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        depth = 1 + max(operand.depth if isinstance(operand, Call) else 0 for operand in self.operands)
        if depth > MOST_DEEP:
            raise SelectError(f"the expression is more than {MOST_DEEP} operations deep")
        object.__setattr__(self, "depth", depth)


Node = Literal | Column | Call


@dataclass(frozen=True)
class Condition:
    """One of those that must all hold, and the words it was asked in."""

    node: Node
    source: str


def parse_conditions(source: str) -> list[Condition]:
    """The expression as conditions that stand between its outermost `and`s.

    Raises:
        SelectError: it is no such expression, with the place where that shows.
    """
    parser = _Parser(source)
    conditions = parser.conditions()
    parser.end()
    return conditions


def parse(source: str) -> Node:
    """The expression as one tree.

    Raises:
        SelectError: it is none.
    """
    parser = _Parser(source)
    node = parser.any_of()
    parser.end()
    return node


def columns_of(node: Node) -> list[str]:
    """The names of the columns that it asks for, in order, each once."""

    def names(node: Node) -> Iterator[str]:
        if isinstance(node, Column):
            yield node.name
        elif isinstance(node, Call):
            for operand in node.operands:
                yield from names(operand)

    return list(dict.fromkeys(names(node)))


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    """Words of the language in lower case."""
    start: int
    end: int


class _Parser:
    """Recursive descent, one method a level of the grammar, loosest first."""

    def __init__(self, source: str):
        if len(source) > MOST_CHARACTERS:
            raise SelectError(f"an expression of {len(source):,} characters; at most {MOST_CHARACTERS:,}")
        self._source = source
        self._tokens = list(_tokens(source))
        self._at = 0
        self._depth = 0

    def conditions(self) -> list[Condition]:
        found = [self._condition()]
        while self._take("and"):
            found.append(self._condition())
        if self._peek("or"):  # then `and` was not outermost after all
            self._at = 0
            return [Condition(self.any_of(), self._source.strip())]
        return found

    def any_of(self) -> Node:
        self._depth += 1
        if self._depth > MOST_NESTED:
            raise SelectError(f"the expression is nested more than {MOST_NESTED} deep")
        operands = [self._all_of()]
        while self._take("or"):
            operands.append(self._all_of())
        self._depth -= 1
        return operands[0] if len(operands) == 1 else Call("or", tuple(operands))

    def end(self) -> None:
        if self._token.kind != "end":
            raise self._unexpected("the end")

    def _condition(self) -> Condition:
        start = self._token.start
        node = self._negation()
        return Condition(node, self._source[start : self._tokens[self._at - 1].end])

    def _all_of(self) -> Node:
        operands = [self._negation()]
        while self._take("and"):
            operands.append(self._negation())
        return operands[0] if len(operands) == 1 else Call("and", tuple(operands))

    def _negation(self) -> Node:
        times = 0
        while self._take("not"):
            times += 1
        node = self._comparison()
        return Call("not", (node,)) if times % 2 else node

    def _comparison(self) -> Node:
        left = self._sum()
        if self._token.text in _COMPARISONS and self._token.kind == "sign":
            return Call(_COMPARISONS[self._next().text], (left, self._sum()))
        if self._take("is"):
            negated = self._take("not")
            self._expect("null")
            node: Node = Call("is null", (left,))
            return Call("not", (node,)) if negated else node
        negated = self._take("not")
        if self._take("in"):
            node = Call("in", (left, *self._list()))
        elif self._take("between"):
            low = self._sum()
            self._expect("and")
            node = Call("and", (Call(">=", (left, low)), Call("<=", (left, self._sum()))))
        elif self._take("like"):
            node = Call("like", (left, self._sum()))
        elif negated:
            raise self._unexpected("in, between or like")
        else:
            return left
        return Call("not", (node,)) if negated else node

    def _sum(self) -> Node:
        node = self._product()
        while self._token.kind == "sign" and self._token.text in "+-":
            node = Call(self._next().text, (node, self._product()))
        return node

    def _product(self) -> Node:
        node = self._signed()
        while self._token.kind == "sign" and self._token.text in "*/":
            node = Call(self._next().text, (node, self._signed()))
        return node

    def _signed(self) -> Node:
        negative = False
        while self._token.kind == "sign" and self._token.text in "+-":
            negative ^= self._next().text == "-"
        node = self._one()
        if not negative:
            return node
        if isinstance(node, Literal) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
            return Literal(-node.value)
        return Call("-", (Literal(0), node))

    def _one(self) -> Node:
        token = self._next()
        if token.kind == "number":
            return Literal(_number(token.text))
        if token.kind == "text":
            return Literal(token.text[1:-1].replace("''", "'"))
        if token.kind == "quoted":
            return Column(token.text[1:-1].replace('""', '"'))
        if token.text in ("true", "false", "null") and token.kind == "keyword":
            return Literal({"true": True, "false": False, "null": None}[token.text])
        if token.kind == "word":
            return Call(token.text.lower(), self._list()) if self._peek("(") else Column(token.text)
        if token.text == "(" and token.kind == "sign":
            node = self.any_of()
            self._expect(")")
            return node
        raise self._unexpected("a value", token)

    def _list(self) -> tuple[Node, ...]:
        self._expect("(")
        found = [self.any_of()]
        while self._take(","):
            found.append(self.any_of())
        self._expect(")")
        return tuple(found)

    @property
    def _token(self) -> _Token:
        return self._tokens[self._at]

    def _next(self) -> _Token:
        token = self._token
        self._at += token.kind != "end"
        return token

    def _peek(self, text: str) -> bool:
        return self._token.text == text and self._token.kind in ("sign", "keyword")

    def _take(self, text: str) -> bool:
        taken = self._peek(text)
        self._at += taken
        return taken

    def _expect(self, text: str) -> None:
        if not self._take(text):
            raise self._unexpected(f"{text!r}")

    def _unexpected(self, wanted: str, token: _Token | None = None) -> SelectError:
        token = token or self._token
        got = "it ends" if token.kind == "end" else f"there is {token.text[:40]!r}"
        return SelectError(f"{self._source[:200]!r}: {wanted} was expected at character {token.start + 1}, but {got}")


def _tokens(source: str) -> Iterator[_Token]:
    at = 0
    stripped = len(source.rstrip())
    while at < stripped:
        match = _TOKEN.match(source, at)
        if match is None:
            start = at + len(source[at:]) - len(source[at:].lstrip())
            what = "a text that does not end" if source[start] in "'\"" else f"{source[start : start + 20]!r}"
            raise SelectError(f"{source[:200]!r}: at character {start + 1} stands {what}, which cannot be read")
        kind = str(match.lastgroup)
        text, start = match.group(kind), match.start(kind)
        if kind == "word" and text.lower() in _WORDS:
            kind, text = "keyword", text.lower()
        yield _Token(kind, text, start, match.end())
        at = match.end()
    yield _Token("end", "", len(source), len(source))


def _number(text: str) -> float | int:
    value: Any = int(text) if text.isdecimal() and len(text) < 19 else float(text)
    return value
