#!/usr/bin/env python3
"""Deploy, kill workers under load, scale to zero and back, take down: what the README's lines do.

    python tools/remote_experiments/deploy_session.py -o docs/results/deploy-session.json

Needs `pip install '.[remote]'`. Answers come over HTTP from `remoe-edge deploy`, greedy, and every one
has to be the answer of the engine alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))
from remoe_edge.files.models import shipped_model
from remote_experiments.setting import keep

CLI = [sys.executable, "-m", "remoe_edge.cli"]
PATIENCE_S = 900.0
QUESTIONS = (
    "What is the sea?",
    "Tell me about bread.",
    "Why do birds sing?",
    "What is two and two?",
)


class Session:
    """Run commands in an environment of its own, and write down what they say."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model, self.begin = model, time.monotonic()
        self.environment = {
            **os.environ,
            "XDG_RUNTIME_DIR": str(folder),
            "HOME": str(folder / "home"),
        }
        (folder / "home").mkdir()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        """Write down a line, with the seconds since the beginning."""
        line = f"{time.monotonic() - self.begin:7.1f} s  {text}"
        self.lines.append(line)
        print(line, flush=True)

    def run(self, *words: str) -> str:
        """Run a command to its end."""
        self.say("$ remoe-edge " + " ".join(self.shown(each) for each in words))
        done = subprocess.run(
            [*CLI, *words], env=self.environment, capture_output=True, text=True, check=False
        )
        for line in (done.stdout + done.stderr).splitlines():
            self.say("  " + self.shown(line))
        return done.stdout

    def shown(self, text: str) -> str:
        """Leave out where things lie on this machine."""
        return text.replace(str(self.model), self.model.name)

    def status(self) -> dict[str, Any]:
        """Ask for the state, without writing it down."""
        done = subprocess.run(
            [*CLI, "deploy", "status", "--json"], env=self.environment, capture_output=True,
            text=True, check=True,
        )  # fmt: skip
        found: dict[str, Any] = json.loads(done.stdout)[0]["functions"]
        return found

    def n_replicas(self, state: str | None = None) -> int:
        """Count replicas, of one state or of any."""
        return sum(
            n
            for each in self.status().values()
            for kind, n in each["replicas"].items()
            if state in (None, kind)
        )


def until(condition: Callable[[], bool], what: str) -> float:
    """Wait for something; give the seconds it took."""
    begin = time.monotonic()
    while not condition():
        if time.monotonic() - begin > PATIENCE_S:
            raise SystemExit(f"gave up waiting until {what}")
        time.sleep(0.2)
    return time.monotonic() - begin


def ask(url: str, question: str, n_tokens: int) -> str:
    """Ask one question over HTTP."""
    body = {
        "messages": [{"role": "user", "content": question}], "max_tokens": n_tokens, "temperature": 0,
    }  # fmt: skip
    request = urllib.request.Request(
        f"{url}v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"])


def metric(url: str, name: str) -> float:
    """Add up a metric over its labels."""
    with urllib.request.urlopen(f"{url}metrics", timeout=60) as page:
        text = page.read().decode()
    return sum(float(m[1]) for m in re.finditer(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.M))


def alone(session: Session, n_tokens: int) -> dict[str, str]:
    """Answer all questions with the engine alone."""
    found = {}
    for question in QUESTIONS:
        done = subprocess.run(
            [*CLI, "chat", str(session.model), "-p", question, "-n", str(n_tokens), "--temp", "0",
             "--json"],
            env=session.environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        found[question] = str(json.loads(done.stdout)["text"])
    return found


@contextlib.contextmanager
def deployed(session: Session, options: argparse.Namespace):  # type: ignore[no-untyped-def]
    """Have `remoe-edge deploy` run in the foreground, and give the address it serves at."""
    words = ["deploy", str(session.model), "--slo", options.slo, "--memory", options.memory,
             "--keep", "3", "--port", "0"]  # fmt: skip
    session.say("$ remoe-edge " + " ".join(session.shown(each) for each in words))
    process = subprocess.Popen(
        [*CLI, *words], env=session.environment, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    url, ready = "", threading.Event()

    def hear() -> None:
        nonlocal url
        for line in process.stderr or ():
            session.say("  " + session.shown(line.rstrip()))
            if found := re.search(r"ready: chat at (\S+),", line):
                url = found[1]
                ready.set()
        ready.set()

    threading.Thread(target=hear, daemon=True).start()
    ready.wait(PATIENCE_S)
    if not url:
        raise SystemExit("deploy did not come to serve")
    try:
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def workers_of(model: Path) -> list[int]:
    """Find the workers that replicas on this machine supervise."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if b"--supervised" in words and os.fsencode(model) in words:
                found.append(int(folder.name))
    return found


def main(arguments: list[str] | None = None) -> int:
    """Go through all of it."""
    parser = argparse.ArgumentParser(prog="deploy_session.py", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=shipped_model())
    parser.add_argument("--slo", default="tpot=5s,ttft=60s")
    parser.add_argument("--memory", default="110MiB")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="remoe-run-") as folder:
        session = Session(options.model.resolve(), Path(folder))
        expected = alone(session, options.tokens)
        found: dict[str, Any] = {"answers": 0, "answers_that_differ": 0, "failed": 0, "kills": 0}
        try:
            with deployed(session, options) as url:
                found |= under_load(session, url, expected, options, found)
            found["to_zero_s"] = until(lambda: session.n_replicas() == 0, "all replicas ended")
            session.say("no replica is left")
            session.run("deploy", "status")
            chat = ["chat", str(session.model), "--deployment", session.model.stem, "-p", QUESTIONS[0],
                    "-n", str(options.tokens), "--temp", "0"]  # fmt: skip
            text = session.run(*chat)
            found["same_after_zero"] = expected[QUESTIONS[0]].strip() in text
        finally:
            session.run("deploy", "down")
        found["left_at_home"] = sorted(
            each.name for each in (Path(folder) / "home").iterdir() if each.name != ".cache"
        )
        keep({**found, "session": session.lines}, options.out)
    good = not (found["answers_that_differ"] or found["failed"]) and found["same_after_zero"]
    return 0 if good else 1


def under_load(
    session: Session, url: str, expected: dict[str, str], options: argparse.Namespace,
    found: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Ask all the time; kill workers meanwhile, each after the one before is there again."""
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            for question in QUESTIONS:
                try:
                    text = ask(url, question, options.tokens)
                except OSError:
                    found["failed"] += 1
                    continue
                found["answers"] += 1
                found["answers_that_differ"] += text.strip() != expected[question].strip()

    asking = threading.Thread(target=load)
    asking.start()
    calls = "remoe_edge_function_calls_total"
    try:
        found["first_call_s"] = until(lambda: metric(url, calls) > 0, "a function is asked")
        session.say(
            f"functions are asked; {found['answers']} answers before that came from storage"
        )
        session.run("deploy", "status")
        for _ in range(options.kills):
            there = workers_of(session.model)
            session.say(f"kill -9 one of {len(there)} workers")
            os.kill(there[0], signal.SIGKILL)
            found["kills"] += 1
            back = until(
                lambda: len(set(workers_of(session.model)) - set(there[:1])) >= len(there),  # noqa: B023
                "another took its place",
            )
            before = metric(url, calls)
            until(lambda: metric(url, calls) > before, "functions are asked again")  # noqa: B023
            session.say(f"another is there after {back:.1f} s; {found['answers']} answers so far")
    finally:
        stop.set()
        asking.join()
    found["cost"] = metric(url, "remoe_edge_cost_total")
    found["gb_s"] = metric(url, "remoe_edge_memory_gb_seconds_total")
    session.say(
        f"{found['answers']} answers, {found['failed']} failed, {found['answers_that_differ']} differ"
    )
    return found


if __name__ == "__main__":
    sys.exit(main())
