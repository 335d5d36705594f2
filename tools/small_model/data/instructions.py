"""Questions with connected answers, made from training documents of every domain."""

from __future__ import annotations

import ast
import itertools
import random
import re
from collections.abc import Iterator

from .dictionary import first_sense
from .document import Conversation, Document

_PART = {"n": "a noun", "v": "a verb", "adj": "an adjective", "adv": "an adverb"}
_PRODUCT = {
    "linux-doc-6.1": "the Linux kernel",
    "python3.11-doc": "Python",
    "postgresql-doc-15": "PostgreSQL",
    "sqlite3-doc": "SQLite",
    "perl-doc": "Perl",
    "rust-doc": "Rust",
    "git-doc": "Git",
    "libreoffice-help-en-us": "LibreOffice",
    "debian-handbook": "Debian",
    "debian-reference-en": "Debian",
    "gimp-help-en": "GIMP",
}
_SENTENCE = re.compile(r"(?<=[.!?])[\"”']?\s+(?=[A-Z\"“'])")


def make(domain: str, documents: list[Document], seed: int = 20) -> Iterator[Conversation]:
    """Yield question-and-answer conversations of one domain's documents."""
    rng = random.Random(f"{domain}:{seed}")
    maker = {
        "dictionary": _definitions,
        "docs": _sections,
        "code": _functions,
        "prose": _continuations,
        "passages": _topics,
    }.get(domain)
    if maker is not None:
        for document in documents:
            yield from maker(document, rng)


def _definitions(document: Document, rng: random.Random) -> Iterator[Conversation]:
    ask = rng.choice(
        (
            "What does {w} mean?",
            'What does "{w}" mean?',
            "What is the meaning of {w}?",
            "Define {w}.",
            "Can you explain the word {w}?",
            "what is {w}?",
        )
    )
    if document.source == "dict-wn":
        sense = first_sense(document.text)
        if sense is None or len(sense[2]) < 25:
            return
        word, part, gloss = sense
        gloss, *examples = gloss.split('; "')
        answer = f'The word "{word}" is {_PART[part]} that means {gloss.strip().rstrip(";.")}.'
        if part == "n":
            answer = rng.choice(
                (
                    answer,
                    f'"{word[:1].upper() + word[1:]}" is a noun. '
                    f"It means {gloss.strip().rstrip(';.')}.",
                )
            )
        if examples:
            answer += f' For example: "{examples[0].strip().rstrip(chr(34))}."'
        yield Conversation(document.key, document.source, ((ask.format(w=word), answer),))
    elif document.source == "dict-foldoc":
        word, _, rest = document.text.partition("\n")
        text = re.sub(r"<[^>]*>|\(\d{4}-\d\d-\d\d\)|\[[^\]]*\]|\(https?:[^)]*\)", "", rest)
        text = " ".join(_first_paragraph(text).split())
        if 80 < len(text) < 700 and text[0].isupper() and text[-1] == ".":
            yield Conversation(document.key, document.source, ((ask.format(w=word.strip()), text),))


def _first_paragraph(text: str) -> str:
    return next((p for p in re.split(r"\n\s*\n", text.strip()) if len(p) > 60), "")


def _sections(document: Document, rng: random.Random) -> Iterator[Conversation]:
    product = _PRODUCT[document.source]
    blocks = re.split(r"\n\s*\n", document.text)
    found = 0
    for title, body in itertools.pairwise(blocks):
        title, body = title.strip().rstrip("¶#:").strip(), " ".join(body.split())
        title = re.sub(r"^[\d.]+\s+", "", title)
        if not (2 < len(title) < 60 and "\n" not in title and title[0].isalpha()):
            continue
        if title[-1] in ".,;!?" or not (120 < len(body) < 800 and body[0].isupper()):
            continue
        if (
            body[-1] != "."
            or body.count("|") > 1
            or sum(c.isalpha() for c in body) < 0.7 * len(body)
        ):
            continue
        ask = rng.choice(
            (
                "Explain {t} in {p}.",
                "What should I know about {t} in {p}?",
                "Tell me about {t} in {p}.",
                "How does {p} handle {t}?",
                "{p}: what is {t}?",
            )
        )
        question = ask.format(t=title, p=product)
        yield Conversation(
            f"{document.key}#{found}",
            document.source,
            ((question[0].upper() + question[1:], body),),
        )
        found += 1
        if found == 6:
            return


def _functions(document: Document, rng: random.Random) -> Iterator[Conversation]:
    try:
        tree = ast.parse(document.text)
    except (SyntaxError, ValueError, RecursionError):
        return
    lines = document.text.split("\n")
    found = 0
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        doc = (ast.get_docstring(node) or "").split("\n\n")[0].replace("\n", " ").strip()
        source = "\n".join(lines[node.lineno - 1 : node.end_lineno])
        if not (15 < len(doc) < 200 and 60 < len(source) < 1100):
            continue
        task = doc.rstrip(".")
        task = task[0].lower() + task[1:] if not task[:2].isupper() else task
        ask = rng.choice(
            (
                "Write a Python function `{n}`: {t}.",
                "Write a Python function that does this: {t}.",
                "In Python, how would you write `{n}` to {t}?",
                "Write Python code to {t}.",
            )
        )
        lead = rng.choice(
            (
                "Here is a function that does this:",
                "You can write it like this:",
                "This function does it:",
            )
        )
        answer = f"{lead}\n\n```python\n{source}\n```"
        yield Conversation(
            f"{document.key}#{node.name}",
            document.source,
            ((ask.format(n=node.name, t=task), answer),),
        )
        found += 1
        if found == 5:
            return


def _continuations(document: Document, rng: random.Random) -> Iterator[Conversation]:
    sentences = [s.strip() for s in _SENTENCE.split(" ".join(document.text.split()))]
    position = 0
    for number in range(6):
        position += rng.randrange(0, 12)
        start, rest = sentences[position : position + 2], sentences[position + 2 : position + 7]
        position += 7
        opening, answer = " ".join(start), " ".join(rest)
        if not rest or not (60 < len(opening) < 500 and 150 < len(answer) < 1100):
            continue
        ask = rng.choice(
            (
                "Continue this story: {o}",
                "Continue: {o}",
                "What comes next? {o}",
                "Please go on with this text: {o}",
                "Write what follows: {o}",
            )
        )
        yield Conversation(
            f"{document.key}#{number}", document.source, ((ask.format(o=opening), answer),)
        )


_SUBJECT = re.compile(
    r"^((?:The |A |An )?[A-Z][\w'’.-]*(?: (?:of|the|and|de|[A-Z0-9][\w'’.-]*)){0,5})"
    r"(?: \([^)]{1,80}\))?,? (is|was|are|were) (?:a|an|the|one|among|located|born)\b"
)


def _topics(document: Document, rng: random.Random) -> Iterator[Conversation]:
    paragraph = " ".join(document.text.split("\n\n")[0].split())
    sentences = _SENTENCE.split(paragraph)
    answer = ""
    for sentence in sentences[:4]:
        if len(answer) + len(sentence) > 600:
            break
        answer += (" " if answer else "") + sentence.strip()
    found = _SUBJECT.match(paragraph)
    if not found or len(answer) < 90 or answer[-1] not in ".!?":
        return
    subject, verb = found.group(1), found.group(2)
    subject = re.sub(r"^(The|A|An) ", lambda m: m.group().lower(), subject)
    ask = rng.choice(
        (
            "What {v} {s}?",
            "Tell me about {s}.",
            "What do you know about {s}?",
            "Who or what {v} {s}?",
            "Can you tell me something about {s}?",
            "tell me about {s}",
        )
    )
    yield Conversation(document.key, document.source, ((ask.format(s=subject, v=verb), answer),))
