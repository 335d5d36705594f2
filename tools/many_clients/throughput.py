"""Measure how many tokens a second all clients together get, schedule by schedule.

    python tools/many_clients/throughput.py MODEL --cache 40% --clients 2,4,8,16 -o throughput.json
    python tools/many_clients/throughput.py MODEL --cache 40% --memory 3GiB      # in a box, as root

The engine's batch is driven directly, as the server drives it. Each client asks one prompt after another
and takes answers of a fixed length, so that there are always as many conversations as clients. `alone` is
one client; every other row also says what it has of that. `turns`: a token of each in turn. `batch`: all
in one step. `32`: slices of so many tokens. `auto:5s`: what the server does with that pause. `whole`
adds the same without streaming, which is stock llama.cpp's own gain from a batch (`--whole`). Schedules
take turns for `--rounds` rounds, each with the cache that the one before left; a row is the median.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from many_clients.record import held, tell
from remoe_edge import Engine
from remoe_edge.engine.batching import ContinuousBatch
from remoe_edge.engine.conversation import Conversation
from remoe_edge.engine.schedule import Schedule
from remoe_edge.files.models import shipped_model
from remoe_edge.units import parse_bytes, parse_ms

_INSIDE = "--inside"
# What clients together have of one alone, where storage is the limit, by how long one may pause.
BOUNDS = {"auto:5s": ">= 0.8", "auto:60s": ">= 0.9"}


@dataclass
class Run:
    """Hold what one schedule did for so many seconds."""

    schedule: str
    clients: int
    tokens: int = 0
    seconds: float = 0.0
    longest_pause_s: float = 0.0
    first_token_s: list[float] = field(default_factory=list)
    bytes_read: int = 0

    @property
    def tokens_per_s(self) -> float:
        """Give the tokens of all clients together, a second."""
        return self.tokens / self.seconds if self.seconds else 0.0


class Client:
    """Ask prompt after prompt, and note when tokens come. Hears its own answers."""

    def __init__(self, batch: ContinuousBatch, prompts: Sequence[list[int]], n_tokens: int) -> None:
        self._batch, self._prompts, self._n_tokens = batch, prompts, n_tokens
        self._next = 0
        self.conversation: Conversation | None = None

    def ask(self) -> None:
        """Join the batch with the next prompt."""
        prompt = self._prompts[self._next % len(self._prompts)]
        self._next += 1
        self.conversation = self._batch.join(prompt, self, temperature=0, max_tokens=self._n_tokens)

    def piece(self, text: str) -> None:
        """Hear a piece."""

    def ended(self) -> None:
        """Ask again at the next chance."""
        self.conversation = None

    def failed(self, error: Exception) -> None:
        """End the measurement."""
        raise error


def schedule_of(name: str) -> Callable[[], Schedule]:
    """Read a schedule's name."""
    if name == "turns":
        return lambda: Schedule(fixed=(1, 1))
    if name == "batch":
        return lambda: Schedule(fixed=(0, 1 << 20))
    if name.startswith("auto:"):
        pause_s = parse_ms(name.removeprefix("auto:")) / 1000
        return lambda: Schedule(pause_s)
    group, _, length = name.rpartition("x")
    return lambda: Schedule(fixed=(int(group or 1), int(length)))


class Bench:
    """Measure schedules in one engine. known: schedules by clients and name, which learn as they run."""

    def __init__(
        self, engine: Engine, prompts: Sequence[list[int]], n_tokens: int, seconds: float
    ) -> None:
        self._engine, self._prompts = engine, prompts
        self._n_tokens, self._seconds = n_tokens, seconds
        self._known: dict[tuple[int, str], Schedule] = {}
        # Nothing but its length ends an answer: clients compare.
        engine._loaded.is_end = lambda token: False  # type: ignore[method-assign]

    def run(self, name: str, n_clients: int) -> Run:
        """Have so many clients ask for the time; its first quarter is not counted."""
        key = (n_clients, name)
        schedule = self._known.setdefault(
            key, Schedule(fixed=(1, 1 << 20)) if name == "alone" else schedule_of(name)()
        )
        batch = self._engine.batch(schedule)
        try:
            clients = [
                Client(batch, self._prompts[i::n_clients] or self._prompts, self._n_tokens)
                for i in range(n_clients)
            ]
            self._drive(batch, clients, self._seconds / 4)
            done = Run(name, n_clients)
            before = self._engine.counts().get("bytes_read", 0)
            begun_s = time.perf_counter()
            self._drive(batch, clients, self._seconds, done)
            done.seconds = time.perf_counter() - begun_s
            done.bytes_read = self._engine.counts().get("bytes_read", 0) - before
            return done
        finally:
            batch.close()

    def _drive(
        self,
        batch: ContinuousBatch,
        clients: Sequence[Client],
        seconds: float,
        run: Run | None = None,
    ) -> None:
        end_s = time.perf_counter() + seconds
        while time.perf_counter() < end_s:
            for client in clients:
                if client.conversation is None:
                    client.ask()
            running = batch.conversations
            before = [len(each.stats.token_ms) for each in running]
            firsts = [each.stats.n_generated for each in running]
            batch.step()
            if run is None:
                continue
            for each, n, generated in zip(running, before, firsts, strict=True):
                run.tokens += each.stats.n_generated - generated
                if generated == 0 and each.stats.n_generated:
                    run.first_token_s.append(each.stats.ttft_ms / 1000)
                for pause_ms in each.stats.token_ms[n:]:
                    run.longest_pause_s = max(run.longest_pause_s, pause_ms / 1000)


def prompts_of(engine: Engine, path: Path | None, n: int) -> list[list[int]]:
    """Give prompts as tokens: a file's, or pieces of the texts beside the shipped model."""
    if path is not None:
        from remoe_edge.files.prompts import read_prompts

        return [engine.tokenize(text) for text in read_prompts(path)]
    folder = Path(__file__).resolve().parents[2] / "models" / "heldout"
    texts = [each.read_text(encoding="utf-8") for each in sorted(folder.glob("*.txt"))]
    pieces = [
        text[at : at + 400]
        for at in range(0, 1200 * n, 1200)
        for text in texts
        if len(text) > at + 400
    ]
    return [engine.tokenize(piece) for piece in pieces[: 4 * n]]


def measure(asked: argparse.Namespace, *, stream: bool) -> list[Run]:
    """Measure every schedule with every number of clients, in one engine."""
    counts = [int(each) for each in asked.clients.split(",")]
    names = asked.schedules.split(",") if stream else ["batch"]
    with Engine(
        asked.model or shipped_model(), cache=asked.cache, routers=asked.routers, n_ctx=asked.ctx,
        threads=asked.threads, parallel=max(counts), stream=stream,
    ) as engine:  # fmt: skip
        bench = Bench(
            engine, prompts_of(engine, asked.prompts, max(counts)), asked.tokens, asked.seconds
        )
        runs = []
        for _ in range(asked.rounds):
            runs.append(bench.run("alone", 1))
            runs += [bench.run(name, n) for n in counts for name in names]
        if not stream:
            for run in runs:
                run.schedule = f"whole {run.schedule}"
    return runs


def rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Give the median of each schedule and number of clients."""
    found: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        found.setdefault((run.schedule, run.clients), []).append(run)
    made = []
    alone: dict[bool, float] = {}
    for (name, clients), same in found.items():
        rate = statistics.median(run.tokens_per_s for run in same)
        whole = name.startswith("whole ")
        if name.endswith("alone"):
            alone[whole] = rate
        first = [each for run in same for each in run.first_token_s]
        times = round(rate / alone[whole], 3) if alone.get(whole) else None
        bound = BOUNDS.get(name, "") if clients > 1 else ""
        made.append(
            {
                "clients": clients,
                "schedule": name,
                "tokens_per_s": round(rate, 2),
                "times_alone": times,
                "bound": bound,
                "held": held(times, bound),
                "longest_pause_s": round(max(run.longest_pause_s for run in same), 3),
                "ttft_p50_s": round(statistics.median(first), 3) if first else None,
                "ttft_max_s": round(max(first), 3) if first else None,
                "mib_per_token": round(
                    sum(run.bytes_read for run in same)
                    / max(1, sum(run.tokens for run in same))
                    / 2**20,
                    3,
                ),
            }
        )
    return made


def main() -> int:
    """Measure, print a table, write the record; status 1 where a bound was not kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--cache", default="40%")
    parser.add_argument("--routers", help="tuned routers, a file")
    parser.add_argument("--clients", default="2,4,8,16")
    parser.add_argument("--schedules", default="turns,batch,32,auto:5s,auto:60s")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128, help="of an answer")
    parser.add_argument("--ctx", type=int, default=1024)
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--whole", action="store_true", help="measure without streaming, too")
    parser.add_argument("--memory", help="run in a box of so much memory")
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument(_INSIDE, action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.memory and not asked.inside:
        from remoe_edge.bench.box import Limits, boxed

        with boxed(Limits(memory_bytes=parse_bytes(asked.memory))) as box:
            command = [sys.executable, __file__, *sys.argv[1:], _INSIDE]
            status = subprocess.run(box.command(command), check=False).returncode
            if status < 0:
                print(f"ended by signal {-status}: {asked.memory} are too few", file=sys.stderr)
            return status
    runs = measure(asked, stream=True)
    if asked.whole:
        runs += measure(asked, stream=False)
    table = rows(runs)
    kept = tell(asked, table, asked.output, runs=[asdict(run) for run in runs])
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
