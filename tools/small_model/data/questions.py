"""Questions of everyday kinds, for a teacher model to answer; what they are about is in words/."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Questions that samples are shown of: never asked here.
KEPT_BACK = frozenset(
    (
        "What does courage mean?",
        "Tell me about the history of London.",
        "Continue this story: The old captain stood at the window and looked at the sea.",
        "What is a file system in Linux?",
        "Tell me about football.",
    )
)


class Question(NamedTuple):
    """What is asked, and a word that an answer must contain."""

    text: str
    topic: str


def words(name: str) -> list[str]:
    """Return the lines of a list in words/."""
    return (Path(__file__).parent / "words" / f"{name}.txt").read_text().splitlines()


_ABOUT = (
    "Tell me about {t}.",
    "tell me about {t}",
    "Can you tell me something about {t}?",
    "What is {t}?",
    "What do you know about {t}?",
    "Explain {t} in simple words.",
    "Why is {t} important?",
    "Give me a short description of {t}.",
    "Write a few sentences about {t}.",
    "What can you say about {t}?",
    "I want to learn about {t}.",
    "What does {t} mean?",
    'What does the word "{t}" mean?',
    "What is interesting about {t}?",
    "Describe {t}.",
)
_OF_PLACES = (
    "Tell me about {t}.",
    "Tell me about the history of {t}.",
    "What is {t} known for?",
    "Describe {t}.",
    "What can I see in {t}?",
    "What do you know about {t}?",
    "Where is {t}?",
    "What do people eat in {t}?",
    "What is the weather like in {t}?",
    "What happened in the history of {t}?",
)
_OF_SUBJECTS = ("Tell me about the history of {t}.", "What is the history of {t}?")
_OF_COMPUTERS = (
    "What is {t} in {p}?",
    "Explain {t} in {p}.",
    "What is {t} used for in {p}?",
    "How does {t} work in {p}?",
    "Tell me about {t} in {p}.",
)
_ADVICE = (
    "How can I {d}?",
    "How do I {d}?",
    "Give me some advice. I want to {d}.",
    "I want to {d}. What should I do?",
    "What is the best way to {d}?",
)
_POEM = ("Write a short poem about {t}.", "Write a poem about {t}.")
_STORY = (
    "Continue this story: The {w} {d}.",
    "Continue this story: One day the {w} {d}.",
    "Continue: The {w} {d}.",
    "What happens next? The {w} {d}.",
    "Go on with this story: The {w} {d}.",
    "Write a short story. The {w} {d}.",
    "Tell me a story about a {w}.",
    "Write a short story about a {w}.",
)


# Their plurals are not regular.
_IRREGULAR = ("child", "deer", "fish", "leaf", "man", "mouse", "sheep", "wolf", "woman")


def _as_asked(topic: str, uncounted: set[str], rng: random.Random) -> str:
    if topic in uncounted or rng.random() < 0.2:
        return topic
    if topic[-1] == "s" or topic in _IRREGULAR or rng.random() < 0.5:
        return ("an " if topic[0] in "aeio" else "a ") + topic
    return _plural(topic)


def _plural(word: str) -> str:
    if word[-1] == "y" and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    if word[-1] in "xzo" or word[-2:] in ("ch", "sh"):
        return word + ("s" if word[-2:] in ("oo", "no", "io") else "es")
    return word + "s"


def _stem(topic: str) -> str:
    """Return the part of a topic's last word that its plural keeps, in lower case."""
    word = topic.split()[-1].lower()
    return word[:-1] if len(word) > 3 and word[-1] in "esy" else word


def make(seed: int = 20) -> Iterator[Question]:
    """Yield questions without end, none of `KEPT_BACK`; one that comes again is asked again."""
    rng = random.Random(seed)
    topics, uncounted = words("topics"), set(words("uncounted"))
    places, subjects, computing = words("places"), words("subjects"), words("computing")
    things_to_do, whys = words("things_to_do"), words("whys")
    persons, deeds = words("persons"), words("deeds")
    while True:
        kind = rng.random()
        if kind < 0.37:
            topic = rng.choice(topics)
            form = _as_asked(topic, uncounted, rng)
            text = rng.choice(_ABOUT).format(t=form)
            if form == _plural(topic):
                for one, many in (("is", "are"), ("does", "do")):
                    text = text.replace(f"{one} {form}", f"{many} {form}")
        elif kind < 0.52:
            topic = rng.choice(places)
            text = rng.choice(_OF_PLACES).format(t=topic)
        elif kind < 0.56:
            topic = rng.choice(subjects)
            text = rng.choice(_OF_SUBJECTS).format(t=topic)
        elif kind < 0.67:
            place, _, topic = rng.choice(computing).partition(": ")
            text = rng.choice(_OF_COMPUTERS).format(t=topic, p=place)
        elif kind < 0.75:
            topic = rng.choice(things_to_do)
            text = rng.choice(_ADVICE).format(d=topic)
        elif kind < 0.79:
            topic = rng.choice(whys)
            text = f"Why {topic}?"
        elif kind < 0.81:
            topic = rng.choice(topics)
            text = rng.choice(_POEM).format(t=_as_asked(topic, uncounted, rng))
        else:
            topic = rng.choice(persons)
            text = rng.choice(_STORY).format(w=topic, d=rng.choice(deeds))
            text = text.replace(" a old", " an old")
        if text not in KEPT_BACK:
            yield Question(text, _stem(topic))
