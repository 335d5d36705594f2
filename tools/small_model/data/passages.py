"""Passages: encyclopaedic and narrative paragraphs from BIG-bench's reading tasks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from .document import Document
from .plain_text import detokenised, is_english, tidy

SOURCE = "bigbench"
# Tasks whose inputs open with a passage; what follows it (question, choices) is cut off.
# Left out: movie_dialog*, real_or_fake_text*, news, reviews, exams and web forums.
_NATURAL = (
    "001_quoref_question_generation",
    "002_quoref_answer_generation",
    "026_drop_question_generation",
    "028_drop_answer_generation",
    "061_ropes_answer_generation",
    "060_ropes_question_generation",
    "049_multirc_questions_needed_to_answer",
    "058_multirc_question_answering",
    "024_cosmosqa_answer_generation",
    "023_cosmosqa_question_generation",
)
_PASSAGE = re.compile(
    r"^(?:Background )?(?:Passage|Paragraph|Context)\s*[:-]\s*(.*?)"
    r"(?=\n ?(?:Question|Questions|Story|Correct Answer|Answer)\b|\nQ:|\Z)",
    re.S,
)
_STORY = re.compile(r"^Story:\s*(.*?)(?=\n ?Question|\Z)", re.S | re.M)


def read(tasks: Path) -> Iterator[Document]:
    """Yield every passage once; `tasks` is the package's benchmark_tasks folder."""
    seen: set[str] = set()
    for _key, text in _candidates(tasks):
        text = tidy(text)
        mark = re.sub(r"\W+", "", text.lower())[:80]
        if len(text) >= 200 and mark not in seen and is_english(text):
            seen.add(mark)
            # The mark, not the task, is the key: one passage serves several tasks.
            yield Document(f"{SOURCE}:{mark}", SOURCE, text)


def _candidates(tasks: Path) -> Iterator[tuple[str, str]]:
    yield from _squad(tasks / "squad_shifts")
    yield from _coqa(tasks / "coqa_conversational_question_answering" / "coqa.test.json")
    yield from _segmented(tasks / "paragraph_segmentation" / "task.json")
    for name in _NATURAL:
        for example in _examples(tasks / "natural_instructions" / f"subtask{name}" / "task.json"):
            text = re.sub(r"Sent \d+: ", "", example["input"])
            spaced = "cosmosqa" in name or "multirc" in name
            for found in (_PASSAGE.search(text), _STORY.search(text)):
                if found:
                    passage = found.group(1)
                    yield name, detokenised(passage) if spaced else passage
    for example in _examples(tasks / "disfl_qa" / "task.json"):
        _, _, context = example["input"].partition("context:")
        yield "disfl_qa", detokenised(context.strip())
    for example in _examples(tasks / "gem" / "wikilingua_en" / "task.json"):
        yield "wikilingua", example["input"]
    for example in _examples(tasks / "minute_mysteries_qa" / "freetext" / "task.json"):
        yield "mysteries", example["input"]
    titles: dict[str, list[str]] = {}
    for example in _examples(tasks / "vitaminc_fact_verification" / "task.json"):
        evidence = detokenised(example["input"].partition("\nClaim:")[0])
        title, _, fact = evidence.partition(": ")
        facts = titles.setdefault(title, [])
        if fact and all(fact[:30] != f[:30] for f in facts):
            facts.append(fact)
    for title, facts in titles.items():
        yield "vitaminc", f"{title}\n" + "\n".join(facts[:12])


def _examples(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as f:
        examples: list[dict[str, str]] = json.load(f)["examples"]
    return examples


def _squad(folder: Path) -> Iterator[tuple[str, str]]:
    for name in ("squaddev_v1.1.json", "new_wiki_v1.0.json"):
        for article in json.loads((folder / name).read_text("utf-8"))["data"]:
            paragraphs = [p["context"] for p in article["paragraphs"]]
            yield article["title"], "\n\n".join(paragraphs)


def _coqa(path: Path) -> Iterator[tuple[str, str]]:
    for item in json.loads(path.read_text("utf-8"))["data"]:
        if item["source"] in ("gutenberg", "wikipedia", "mctest"):
            yield item["id"], item["story"]


def _segmented(path: Path) -> Iterator[tuple[str, str]]:
    """Put the sentences of the segmentation task back into their paragraphs."""
    for example in _examples(path):
        sentences = example["input"].strip("\n").split("\n")
        ends = example["target"].split()
        text = ""
        for sentence, end in zip(sentences, ends, strict=False):
            text += sentence + ("\n\n" if end == "1" else " ")
        yield "paragraphs", text
