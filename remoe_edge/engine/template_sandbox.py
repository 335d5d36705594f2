"""Run chat templates, which come with a model and so from anybody.

The environment has what transformers gives templates: loop controls, `{% generation %}`, `tojson`,
`strftime_now`, `raise_exception`. A template cannot reach Python, and it ends: its loops, calls and
output are counted.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_CHARS = 1 << 24  # more than the longest context has room for
MAX_STEPS = 1_000_000  # turns of loops
CALL_STEPS = 10  # what a call counts for
MAX_SOURCE_CHARS = 1 << 22
MAX_NESTING = 64  # of brackets; the parser's stack ends little above

_TAG = re.compile(r"\{[{%].*?(?:[}%]\}|\Z)", re.DOTALL)


class TemplateFailed(Exception):
    """Carry in one line why a template gave nothing."""


def compiles(source: str) -> bool:
    """Say whether a template can be tried at all."""
    with suppress(TemplateFailed):
        Template(source)
        return True
    return False


class Template:
    """Hold one compiled template. Raises TemplateFailed."""

    def __init__(self, source: str) -> None:
        if len(source) > MAX_SOURCE_CHARS:
            raise TemplateFailed(f"it has {len(source)} characters, over {MAX_SOURCE_CHARS}")
        if _nesting(source) > MAX_NESTING:
            raise TemplateFailed(f"it nests brackets more than {MAX_NESTING} deep")
        self._environment = _Environment()
        try:
            self._template = self._environment.from_string(source)
        # Python's own compiler and its recursion limit have a say too, in exceptions of any kind.
        except Exception as error:
            raise TemplateFailed(_reason(error)) from error

    def render(self, variables: Mapping[str, Any]) -> str:
        """Return the text. Raises TemplateFailed, also for one that does not end."""
        self._environment.steps = 0
        pieces: list[str] = []
        n_chars = 0
        try:
            for piece in self._template.generate(**variables):
                n_chars += len(piece)
                _check_size(n_chars)
                pieces.append(piece)
        except Exception as error:  # whatever a template does wrong is its failure
            raise TemplateFailed(_reason(error)) from error
        return "".join(pieces)


def _reason(error: Exception) -> str:
    kind = "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: "
    where = f"line {error.lineno}: " if isinstance(error, jinja2.TemplateSyntaxError) else ""
    said = " ".join(str(getattr(error, "message", None) or error).split())
    said = said or type(error).__name__
    return f"{kind}{where}{said if len(said) <= 300 else said[:300] + '...'}"


def _nesting(source: str) -> int:
    deepest = 0
    for tag in _TAG.finditer(source):
        depth = 0
        for bracket in re.findall(r"[()\[\]{}]", tag[0]):
            depth += 1 if bracket in "([{" else -1
            deepest = max(deepest, depth)
    return deepest


def _check_size(n_chars: int) -> None:
    if n_chars > MAX_CHARS:
        raise jinja2.TemplateRuntimeError(f"it writes more than {MAX_CHARS} characters")


class _Generation(jinja2.ext.Extension):
    """Let `{% generation %}` pass: it marks for training what the assistant wrote."""

    tags = {"generation"}  # noqa: RUF012 - what Jinja reads

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """Count what a template does, and refuse what only grows."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        self.steps = 0
        for name in _GROWING & self.filters.keys():
            self.filters[name] = _bounded(name, self.filters[name])
        self.filters |= {
            "tojson": _to_json, "counted steps": self._counted, "joined texts": _joined,
            "measured text": _measured,
        }  # fmt: skip
        self.globals |= {"raise_exception": _raise, "strftime_now": _now}

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        """Parse, and have every loop and every `~` go through a filter of ours."""
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(jinja2.nodes.For)):
            loop.iter = _through("counted steps", loop.iter, loop.lineno)
        for block in list(tree.find_all(jinja2.nodes.AssignBlock)):
            block.filter = _through("measured text", block.filter, block.lineno)
        _replace_concats(tree)
        tree.set_environment(self)
        return tree

    def step(self, n: int = 1) -> None:
        """Count steps, and end a template that has taken too many."""
        self.steps += n
        if self.steps > MAX_STEPS:
            raise jinja2.TemplateRuntimeError(f"it takes more than {MAX_STEPS} steps")

    def _counted(self, values: Iterable[Any]) -> Iterator[Any]:
        for each in values:
            self.step()
            yield each

    def call(self, context: Any, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call what the template calls."""
        self.step(CALL_STEPS)
        method = getattr(called, "__wrapped__", called)  # the sandbox wraps formatting
        name, text = getattr(method, "__name__", ""), getattr(method, "__self__", None)
        if name in _GROWING and isinstance(text, str):
            _check_growth(name, text, args, kwargs)
        result = super().call(context, called, *args, **kwargs)
        if isinstance(result, str):
            _check_size(len(result))
        return result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute what may grow with every use."""
        if operator == "**":
            raise jinja2.TemplateRuntimeError("it raises a number to a power")
        if operator == "%" and isinstance(left, str):
            _check_growth("format", left, (), {})
        if operator == "*":
            for sized, times in ((left, right), (right, left)):
                if isinstance(times, int) and hasattr(sized, "__len__"):
                    _check_size(len(sized) * times)
        result = super().call_binop(context, operator, left, right)
        if hasattr(result, "__len__"):
            _check_size(len(result))
        elif isinstance(result, int) and result.bit_length() > 1024:
            raise jinja2.TemplateRuntimeError("it computes a number of more than 1024 bits")
        return result


# Filters and methods of texts whose result may be far longer than what they are given.
_GROWING = frozenset(
    ("center", "expandtabs", "format", "format_map", "indent", "join", "ljust", "replace", "rjust",
     "zfill")
)  # fmt: skip
_WIDE = re.compile(
    r"\*|\d{5,}|\{[^{}]*\{"
)  # in a format: a width that is huge, or comes from elsewhere


def _check_growth(name: str, text: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    given = [*args, *kwargs.values()]
    if name == "join":
        values = given[0] if given and isinstance(given[0], Sequence) else ()
        _check_size(len(text) * len(values) + sum(len(x) for x in values if isinstance(x, str)))
    elif name == "replace":
        old, new = (str(each) for each in (*given, "", "")[:2])
        _check_size(len(text) + text.count(old) * len(new))
    elif name.startswith("format"):
        if _WIDE.search(text):
            raise jinja2.TemplateRuntimeError("it formats with a width that may be huge")
    else:
        width = max((abs(each) for each in given if isinstance(each, int)), default=0)
        _check_size(width * (1 + text.count("\n") + text.count("\t")))


def _bounded(name: str, of: Callable[..., Any]) -> Callable[..., Any]:
    """Check what a filter is given before it runs."""

    def run(first: Any, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name == "join":
            value = list(value)
            _check_growth(name, str((*args, *kwargs.values(), "")[0]), (value,), {})
        else:
            _check_growth(name, str(value), args, kwargs)
        return of(*first, value, *args, **kwargs)

    # Jinja tells by a mark on the function what it wants to be given first.
    if not hasattr(of, "jinja_pass_arg"):
        return lambda value, *args, **kwargs: run((), value, args, kwargs)

    @functools.wraps(of)
    def passed(first: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        return run((first,), value, args, kwargs)

    return passed


def _joined(values: Sequence[Any]) -> str:
    texts = [str(each) for each in values]
    _check_size(sum(map(len, texts)))
    return "".join(texts)


def _measured(text: str) -> str:
    _check_size(len(text))
    return text


def _through(name: str, value: jinja2.nodes.Node | None, line: int) -> jinja2.nodes.Filter:
    return jinja2.nodes.Filter(value, name, [], [], None, None, lineno=line)


def _replace_concats(node: jinja2.nodes.Node) -> None:
    """Turn every `a ~ b` below a node into a filter over [a, b]."""

    def replaced(child: Any) -> Any:
        if not isinstance(child, jinja2.nodes.Node):
            return child
        _replace_concats(child)
        if not isinstance(child, jinja2.nodes.Concat):
            return child
        texts = jinja2.nodes.List(child.nodes, lineno=child.lineno)
        return _through("joined texts", texts, child.lineno)

    for name, field in node.iter_fields():
        many = isinstance(field, list)
        setattr(node, name, [replaced(each) for each in field] if many else replaced(field))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as transformers' filter does: Jinja's own escapes what HTML must not hold."""
    if indent is not None and not 0 <= int(indent) <= 64:
        raise jinja2.TemplateRuntimeError(f"it indents JSON by {indent}")
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: Any) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _now(form: str) -> str:
    if len(form) > 1000:
        raise jinja2.TemplateRuntimeError("it asks for the time in over 1000 characters")
    return datetime.now().strftime(form)
