"""Requests for small Python functions, with functions that do it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from .document import Conversation
from .questions import words

_ASK = (
    "Write a Python function that {t}.",
    "Write a function in Python that {t}.",
    "Write a Python function `{n}` that {t}.",
    "Can you write a Python function that {t}?",
    "I need a Python function that {t}.",
    "Show me a Python function that {t}.",
    "write a python function which {t}",
)
_LEAD = ("Here is a function that {t}:", "This function {t}:", "You can write it like this:")


def make(seed: int = 20) -> Iterator[Conversation]:
    """Yield every function of words/functions.txt in answer to every way of asking."""
    rng = random.Random(seed)
    functions = "\n".join(words("functions")).split("\n\n")
    for number, (function, ask) in enumerate(itertools.product(functions, _ASK)):
        comment, code = function.split("\n", 1)
        task, name = comment.removeprefix("# "), code[len("def ") : code.index("(")]
        if rng.random() < 0.3:
            head, body = code.split("\n", 1)
            code = f'{head}\n    """{task[0].upper()}{task[1:]}."""\n{body}'
        answer = f"{rng.choice(_LEAD).format(t=task)}\n\n```python\n{code}\n```"
        yield Conversation(
            f"function:{number}", "remoe-edge", ((ask.format(t=task, n=name), answer),)
        )
