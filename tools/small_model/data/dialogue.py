"""Conversations between people, as alternating turns."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from .document import Conversation

_TURN = re.compile(r'agent_[AB]: "(.*?)"(?= agent_[AB]: "|$)', re.S)


def read(chitchat: Path, tasks: Path) -> Iterator[Conversation]:
    """Yield chitchat-dataset, Topical-Chat and TimeDial conversations."""
    yield from _chitchat(next(chitchat.glob("**/dataset.json")))
    yield from _topical(tasks / "topical_chat" / "task.json")
    yield from _timedial(tasks / "timedial" / "task.json")


def _pairs(lines: list[str]) -> tuple[tuple[str, str], ...]:
    return tuple(zip(lines[0::2], lines[1::2], strict=False))


def _chitchat(path: Path) -> Iterator[Conversation]:
    for key, talk in json.loads(path.read_text("utf-8")).items():
        lines = [_sentences(m["text"] for m in turn) for turn in talk["messages"]]
        lines = [line for line in lines if line]
        if len(lines) >= 4 and max(map(len, lines)) < 1500:
            yield Conversation(f"chitchat:{key}", "chitchat-dataset", _pairs(lines))


def _sentences(messages: Iterator[str]) -> str:
    """Write one person's messages as sentences: capitals and full stops where they lack."""
    out = []
    for message in messages:
        text = re.sub(r"\s+", " ", message).strip()
        if not text:
            continue
        text = re.sub(r"\bi\b(?=[ '’]|$)", "I", text)
        text = re.sub(r"\bim\b", "I'm", text)
        text = text[0].upper() + text[1:]
        out.append(text if text[-1] in ".!?…)\"'" or not text[-1].isalnum() else text + ".")
    return " ".join(out)


def _topical(path: Path) -> Iterator[Conversation]:
    longest: dict[str, list[str]] = {}
    for example in json.loads(path.read_text("utf-8"))["examples"]:
        lines = _TURN.findall(example["input"])
        lines.append(example["target"].strip().strip('"'))
        if len(lines) > len(longest.get(example["comment"], [])):
            longest[example["comment"]] = lines
    for key, raw in longest.items():
        lines = [re.sub(r"\s+", " ", line).strip() for line in raw]
        lines = [line[0].upper() + line[1:] for line in lines if line]
        if len(lines) >= 4:
            yield Conversation(f"topical:{key}", "bigbench", _pairs(lines))


def _timedial(path: Path) -> Iterator[Conversation]:
    seen: set[str] = set()
    for example in json.loads(path.read_text("utf-8"))["examples"]:
        _, _, context = example["input"].partition("Context:")
        right = [a for a, score in example["target_scores"].items() if score]
        lines = [x.strip() for x in re.split(r"\n\s*[AB]:", "\n" + context.strip()) if x.strip()]
        lines = [x.replace("<MASK>", right[0] if right else "") for x in lines]
        mark = "".join(lines)[:60]
        if len(lines) >= 4 and mark not in seen:
            seen.add(mark)
            yield Conversation(f"timedial:{mark}", "bigbench", _pairs(lines))
