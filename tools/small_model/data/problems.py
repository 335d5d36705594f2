"""Word problems with solutions: GSM8K and reasoning-gym's generators."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from .document import Conversation

# Generators whose questions are English and whose answers a small model can learn to give.
GENERATORS = (
    "gsm_symbolic",
    "chain_sum",
    "basic_arithmetic",
    "simple_equations",
    "family_relationships",
    "leg_counting",
    "calendar_arithmetic",
    "time_intervals",
    "word_sorting",
    "spell_backward",
    "letter_counting",
    "knights_knaves",
    "syllogism",
    "products",
)


def gsm8k(path: Path) -> Iterator[Conversation]:
    """Yield GSM8K's problems with their worked solutions, the answer as a last sentence."""
    for number, line in enumerate(path.read_text("utf-8").splitlines()):
        item = json.loads(line)
        solution, _, answer = item["answer"].partition("####")
        solution = re.sub(r"<<[^>]*>>", "", solution).strip()
        reply = f"{solution}\nThe answer is {answer.strip()}."
        yield Conversation(f"gsm8k:{number}", "gsm8k", ((item["question"].strip(), reply),))


def times(generator: str) -> int:
    """Return how many times as many problems a generator gives as the others do."""
    return 4 if generator == "gsm_symbolic" else 1


def generated(package: Path, per_generator: int) -> Iterator[Conversation]:
    """Yield `per_generator` problems of each reasoning-gym generator, seeded."""
    sys.path.insert(0, str(package))
    import reasoning_gym

    for name in GENERATORS:
        data = reasoning_gym.create_dataset(name, seed=20, size=times(name) * per_generator)
        for number, item in enumerate(data):
            question, answer = str(item["question"]).strip(), str(item["answer"]).strip()
            if not answer or len(question) + len(answer) > 2500:
                continue
            reply = answer if len(answer.split()) > 6 else f"The answer is {answer}."
            yield Conversation(f"{name}:{number}", "reasoning-gym", ((question, reply),))
