"""Small word problems with their sums written out, and bare sums: made here, so they are right."""

from __future__ import annotations

import random
from collections.abc import Iterator

from .document import Conversation
from .questions import words

_BARE = (
    "What is {a} {o} {b}?",
    "{a} {o} {b} = ?",
    "How much is {a} {o} {b}?",
    "Calculate {a} {o} {b}.",
)
KEPT_BACK = "Tom has 5 apples and buys 3 more. How many apples does he have?"


def _numbers(how: str, rng: random.Random) -> tuple[int, int, int]:
    if how == "+":
        a, b = rng.randrange(1, 30), rng.randrange(1, 20)
        return a, b, a + b
    if how == "-":
        a = rng.randrange(3, 40)
        b = rng.randrange(1, a)
        return a, b, a - b
    a, b = rng.randrange(2, 11), rng.randrange(2, 11)
    return (a, b, a * b) if how == "x" else (a * b, b, a)


def make(count: int, seed: int = 20) -> Iterator[Conversation]:
    """Yield `count` conversations of one problem each, none of them `KEPT_BACK`."""
    rng = random.Random(seed)
    names, she, things = words("names"), set(words("names_of_women")), words("countable")
    # Of n and m, two persons, a and b, numbers, t, things, and c, the result.
    kinds = [line.split(" | ") for line in words("problems")]
    number = 0
    while number < count:
        if rng.random() < 0.2:
            how = rng.choice("+-x/")
            a, b, c = _numbers(how, rng)
            text = rng.choice(_BARE).format(a=a, b=b, o=how)
            answer = f"{a} {how} {b} = {c}."
        else:
            how, problem, solution = rng.choice(kinds)
            a, b, c = _numbers(how, rng)
            n, m = rng.sample(names, 2)
            filled = {
                "n": n,
                "m": m,
                "a": a,
                "b": b,
                "c": c,
                "t": rng.choice(things),
                "he": "she" if n in she else "he",
                "him": "her" if n in she else "him",
                "gets": rng.choice(("buys", "gets", "finds", "is given")),
                "loses": rng.choice(("loses", "gives away", "sells", "eats")),
            }
            text = problem.format(**filled)
            answer = f"{solution.format(**filled)}\nThe answer is {c}."
        if text != KEPT_BACK:
            yield Conversation(f"sum:{number}", "remoe-edge", ((text, answer),))
            number += 1
