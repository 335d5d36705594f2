"""What the dialogue stage learns from: made problems, functions and questions, a teacher's answers."""

from __future__ import annotations

import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TOOLS = Path(__file__).resolve().parents[1] / "tools" / "small_model"
sys.path.insert(0, str(TOOLS))

import sample_chat  # noqa: E402
import tiny_dense  # noqa: E402
from ask_teacher import clean  # noqa: E402
from data import questions, small_functions, sums  # noqa: E402


def test_made_sums_are_right() -> None:
    operations = {
        "+": lambda a, b: a + b,
        "-": lambda a, b: a - b,
        "x": lambda a, b: a * b,
        "/": lambda a, b: a / b,
    }
    found = set()
    for talk in sums.make(2000):
        ((_, answer),) = talk.turns
        for a, how, b, c in re.findall(r"(\d+) ([-+x/]) (\d+) = (\d+)", answer):
            assert operations[how](int(a), int(b)) == int(c), answer
            found.add(how)
        stated = re.search(r"The answer is (\d+)\.$", answer)
        assert stated is None or answer.count(f"= {stated.group(1)}") == 1
    assert found == set(operations)


def test_small_functions_do_what_is_asked() -> None:
    calls: dict[str, tuple[tuple[Any, ...], Any]] = {
        "returns the sum of two numbers": ((2, 3), 5),
        "computes the factorial of a number": ((5,), 120),
        "computes the n-th Fibonacci number": ((10,), 55),
        "checks whether a number is prime": ((91,), False),
        "computes the greatest common divisor of two numbers": ((12, 18), 6),
        "computes the least common multiple of two numbers": ((4, 6), 12),
        "computes the median of a list": (([4, 1, 3, 2],), 2.5),
        "removes the duplicates from a list": (([1, 2, 1],), [1, 2]),
        "counts the letters of a word": (("abba",), {"a": 2, "b": 2}),
        "searches a sorted list": (([1, 3, 5, 9], 5), 2),
        "checks whether a year is a leap year": ((1900,), False),
    }
    seen = 0
    for talk in small_functions.make():
        ((ask, answer),) = talk.turns
        code = answer.split("```python\n")[1].removesuffix("\n```")
        scope: dict[str, Any] = {}
        exec(code, scope)
        name = re.search(r"def (\w+)", code)
        assert name is not None
        for task, (arguments, result) in calls.items():
            if task in ask:
                assert scope[name.group(1)](*arguments) == result
                seen += 1
    assert seen >= 6 * len(calls)


def test_no_sample_question_is_trained_on() -> None:
    shown = set(sample_chat.PROMPTS)
    asked = {q.text for q in itertools.islice(questions.make(), 50_000)}
    asked |= {t.turns[0][0] for t in small_functions.make()}
    asked |= {t.turns[0][0] for t in sums.make(50_000)}
    assert not shown & asked
    assert questions.KEPT_BACK | {sums.KEPT_BACK} <= shown


def test_a_question_names_its_topic() -> None:
    for question in itertools.islice(questions.make(), 5_000):
        assert question.topic
        assert question.topic in question.text.lower()
        assert "{" not in question.text


@pytest.mark.parametrize(
    ("answer", "ended", "kept"),
    [
        ("A whale is a large animal. It lives in the sea and eats very small animals.", True, ...),
        (
            "A whale is a large animal that lives in every sea of the world. It eats very sm",
            False,
            "A whale is a large animal that lives in every sea of the world.",
        ),
        ("A whale is big.", True, None),  # too short to learn from
        ("A large animal lives in the sea, and it eats very small animals there.", True, None),
        (
            "I'm sorry, but as an AI I can tell you nothing of whales or of other animals.",
            True,
            None,
        ),
        ("The whale is the whale is the whale is the whale is the whale is the whale.", True, None),
        (
            "Whales:\n1. They live in the sea.\n2. They are very big and eat small animals.",
            True,
            None,
        ),
        ("The whale is 大 and lives in the sea, where it eats very small animals.", True, None),
    ],
)
def test_answers_worth_learning_from(answer: str, ended: bool, kept: object) -> None:
    wanted = answer if kept is ... else kept
    assert clean(questions.Question("What is a whale?", "whale"), answer, ended) == wanted


def test_the_teacher_computes_llama_cpps_logits(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is an extra; the teacher needs it")
    pytest.importorskip("accelerate", reason="transformers reads a GGUF with it")
    llama_cpp = pytest.importorskip("llama_cpp")
    from data.teacher import Teacher

    path = tiny_dense.make(tmp_path / "dense.gguf")
    llama = llama_cpp.Llama(str(path), n_ctx=64, logits_all=True, n_threads=1, verbose=False)
    prompt = [5, 9, 3, 17, 30, 8, 11, 2]
    llama.eval(prompt)
    stock = np.array(llama.scores[: len(prompt)])
    with torch.inference_mode():
        ours = Teacher(path).model(torch.tensor([prompt, prompt[::-1]])).logits[0].float().numpy()
    spread = np.abs(stock).max(axis=1)
    assert (np.abs(ours - stock).max(axis=1) < 0.03 * spread).all()


def test_a_teachers_answers_end_where_it_stops(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is an extra; the teacher needs it")
    pytest.importorskip("accelerate", reason="transformers reads a GGUF with it")
    from data.teacher import Teacher

    teacher = Teacher(tiny_dense.make(tmp_path / "dense.gguf"))
    prompts = torch.randint(3, 40, (24, 6), generator=torch.Generator().manual_seed(1))

    def ask(stop: int) -> tuple[list[list[int]], list[bool]]:
        return teacher.answer(prompts, 12, stop, 2, 2.0, 8, 1.0)

    vocabulary = teacher.model.config.vocab_size
    free, ended = ask(vocabulary)  # a token that no row can draw
    assert not any(ended)
    assert all(len(a) == 12 for a in free)
    assert ask(vocabulary)[0] == free
    stop = free[0][5]
    answers, ended = ask(stop)
    assert answers[0] == free[0][: free[0].index(stop)]
    assert ended[0]
    for answer, whole in zip(answers, ended, strict=True):
        assert stop not in answer
        assert whole or len(answer) == 12
    (tmp_path / "x.jsonl").write_text(json.dumps(answers))  # plain numbers, as the file wants them
