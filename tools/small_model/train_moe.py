"""Train the small mixture-of-experts model, resumably, on a CPU or a GPU.

    python tools/small_model/train_moe.py --data build/data --out build/run --max-seconds 3600
    python tools/small_model/train_moe.py --data build/data --out build/run --stage chat --steps 500

The learning rate is a function of the step alone once the decay has begun; with
--plan-seconds the number of steps is measured from the pace so far. Ctrl-C and SIGTERM end the run
after the step at hand, with a checkpoint; the same command goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe.batches import Mixture, Stream
from moe.bigram_start import bigram_counts, start_from_bigrams
from moe.config import MoeConfig
from moe.evaluate import evaluate, token_bytes
from moe.gguf_file import read_gguf
from moe.loss_curve import draw_losses
from moe.model import MoeModel
from moe.optimiser import Optimiser, momenta
from moe.passes import Passes
from moe.schedule import Schedule
from moe.workers import Parts, Workers

# Shares of every batch. Small domains are seen more often than their size alone would ask.
BASE_SHARES = {
    "passages": 0.25,
    "docs": 0.18,
    "code": 0.15,
    "prose": 0.14,
    "dictionary": 0.09,
    "problems": 0.06,
    "dialogue": 0.13,
}


def parse() -> argparse.Namespace:
    """Read the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--data", type=Path, required=True, help="folder that build_data.py wrote")
    p.add_argument("--out", type=Path, required=True, help="checkpoints, logs and figures")
    p.add_argument("--stage", choices=("base", "chat"), default="base")
    p.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    p.add_argument(
        "--start", type=Path, help="begin with the weights of this exported GGUF, not at random"
    )
    p.add_argument(
        "--start-tokens", type=int, default=0, help="that the file of --start has been trained on"
    )
    p.add_argument("--steps", type=int, help="end after this many steps of the stage")
    p.add_argument("--plan-seconds", type=float, help="seconds from now until the rate is down")
    p.add_argument("--max-seconds", type=float, help="checkpoint and leave after this long")
    p.add_argument("--save-seconds", type=float, default=240, help="between checkpoints")
    p.add_argument("--rows", type=int, default=128, help="sequences per step")
    p.add_argument("--micro-rows", type=int, default=128, help="sequences per pass")
    p.add_argument(
        "--lr", type=float, default=3e-3, help="AdamW: embeddings, output, norms, routers"
    )
    p.add_argument("--muon-lr", type=float, default=5e-3, help="Muon: attention and experts")
    p.add_argument("--warmup", type=int, default=150)
    p.add_argument("--decay-share", type=float, default=0.35)
    p.add_argument(
        "--active-layers",
        type=int,
        help="train only the first layers, the rest silent; grow by resuming with more",
    )
    p.add_argument("--balance", type=float, default=0.005, help="weight of the balance loss")
    p.add_argument(
        "--capacity-factor", type=float, help="0: drop nothing; default 1.5 on cuda, 0 on cpu"
    )
    p.add_argument("--length", type=int, help="tokens per sequence; default the model's context")
    p.add_argument("--workers", type=int, default=os.cpu_count(), help="cpu: processes")
    p.add_argument("--threads-per-worker", type=int, default=1)
    p.add_argument("--bigram-steps", type=int, default=200, help="0: start embeddings at random")
    p.add_argument(
        "--chat-share", type=float, help="chat rows in a batch; default 0 base, 0.75 chat"
    )
    p.add_argument("--seed", type=int, default=20)
    p.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="torch.compile, worth its minute on long runs; default on cuda only",
    )
    p.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of the products; weights and sums are float32. Default bfloat16 on cuda, float32 on a\n"
        "cpu, where bfloat16 is worth it with AMX only",
    )
    p.add_argument("--eval-tokens", type=int, default=200_000, help="per domain, at the end")
    p.add_argument("--log-every", type=int, default=20)
    p.add_argument("--no-eval", action="store_true")
    for field in fields(MoeConfig):
        p.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default))
    args = p.parse_args()
    if args.steps is None and args.plan_seconds is None:
        p.error("give --steps or --plan-seconds")
    if args.capacity_factor is None:
        args.capacity_factor = 1.5 if args.device == "cuda" else 0.0
    if args.compile is None:
        args.compile = args.device == "cuda"
    if args.dtype is None:
        args.dtype = "bfloat16" if args.device == "cuda" else "float32"
    if args.chat_share is None:
        args.chat_share = 0.75 if args.stage == "chat" else 0.0
    return args


def say(text: str) -> None:
    """Log one line on stderr."""
    print(text, file=sys.stderr, flush=True)


def build_parts(
    args: argparse.Namespace,
    buffers: dict[str, Tensor] | None,
    model: MoeModel,
    rank: int,
    n: int,
) -> Parts:
    """Return what one worker computes with; `buffers`: the momenta that all of them share."""
    device = next(model.parameters()).device
    if device.type == "cpu":
        torch.set_num_threads(args.threads_per_worker)
    passes = Passes(
        model,
        args.micro_rows,
        args.capacity_factor,
        args.balance,
        args.compile,
        args.dtype == "bfloat16",
    )
    optimiser = Optimiser(model, args.lr, args.muon_lr, rank=rank, n=n, buffers=buffers)
    return Parts(passes, mixture(args, model.config, device), optimiser)


class Alone:
    """The same steps in this process, on a GPU."""

    def __init__(self, parts: Parts, model: MoeModel) -> None:
        self.parts, self.model = parts, model

    def step(self, step: int, scale: float) -> Tensor:
        """Take one step at learning rate factor `scale`; return [loss, balance, dropped]."""
        gradients, figures = self.parts.forward_backward(*self.parts.data.batch(step), 1.0, 1.0)
        for p, gradient in zip(self.model.parameters(), gradients, strict=True):
            p.grad = gradient
        self.parts.optimiser.step(scale)
        return figures

    def close(self) -> None:
        """Nothing to end."""


def mixture(args: argparse.Namespace, config: MoeConfig, device: torch.device) -> Mixture:
    """Open the streams of the stage."""
    length = args.length or config.context
    parts = [
        (Stream(path, length, device, False, args.seed), share * (1 - args.chat_share))
        for path, share in base_streams(args.data).items()
    ]
    if args.chat_share:
        manifest = json.loads((args.data / "manifest.json").read_text())
        row = int(manifest["chat"]["row_length"])
        chat = Stream(args.data / "chat.bin", length, device, True, args.seed, row)
        parts.append((chat, args.chat_share))
    return Mixture(parts, args.rows)


def base_streams(data: Path) -> dict[Path, float]:
    """Return the base streams and their shares, which add up to 1."""
    found = {data / "train" / f"{d}.bin": s for d, s in BASE_SHARES.items()}
    found = {p: s for p, s in found.items() if p.exists()}
    total = sum(found.values())
    return {p: s / total for p, s in found.items()}


def main() -> None:
    """Train one stage, then judge it."""
    args = parse()
    started = time.monotonic()
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("highest")
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = args.out / f"{args.stage}.pt"
    previous = checkpoint if checkpoint.exists() else args.out / "base.pt"
    given = {
        f.name: getattr(args, f.name)
        for f in fields(MoeConfig)
        if getattr(args, f.name) is not None
    }
    state: dict[str, Any] = {}
    if previous.exists():
        if args.start and previous != checkpoint:
            sys.exit(
                f"{previous} is what this stage begins with: leave --start away or change --out"
            )
        state = torch.load(previous, map_location=device, weights_only=True)
        config = MoeConfig(**state["config"])
        model = MoeModel(config)
    elif args.start:
        model = read_gguf(args.start)
        config = model.config
    else:
        config = MoeConfig(**given)
        model = MoeModel(config)
        model.start(args.seed)
    model.to(device)
    if not state and not args.start and args.bigram_steps:
        counts = bigram_counts(base_streams(args.data), config.vocab)
        loss = start_from_bigrams(model, counts, args.bigram_steps, seed=args.seed)
        say(f"bigram start: {loss:.3f} nats per token")
    model.active = args.active_layers or config.layers
    workers: Workers | Alone
    threads = torch.get_num_threads()
    if device.type == "cpu":
        buffers = {name: b.share_memory_() for name, b in momenta(model).items()}
        workers = Workers(args.workers, model, partial(build_parts, args, buffers))
    else:
        workers = Alone(build_parts(args, None, model, 0, 1), model)
    optimiser = workers.parts.optimiser
    step, history = 0, []
    schedule = Schedule(args.warmup, args.steps or 10**9, args.decay_share)
    if state:
        model.load_state_dict(state["model"])
        history = state["history"]
        if previous == checkpoint:  # the same stage goes on
            optimiser.load_state_dict(state["optimiser"])
            step = state["step"]
            if args.steps is None:
                schedule.total = state["total"]
        say(f"{previous}: going on from step {step}")
    size = sum(p.numel() for p in model.parameters())
    say(
        f"{size / 1e6:.1f}M parameters, {args.device}, "
        f"{args.rows} x {args.length or config.context} tokens a step"
    )

    def save(at: int) -> None:
        fresh = checkpoint.with_suffix(".new")
        torch.save(
            {
                "config": asdict(config),
                "model": model.state_dict(),
                "optimiser": optimiser.state_dict(),
                "step": at,
                "total": schedule.total,
                "history": history,
                "length": args.length or config.context,
            },
            fresh,
        )
        fresh.replace(checkpoint)  # whole or not at all
        config.save(args.out / "config.json")
        (args.out / "history.json").write_text(json.dumps(history) + "\n")

    run = _train(args, config, workers, schedule, step, history, started, save)
    save(int(run["step"]))
    workers.close()
    torch.set_num_threads(threads)
    workers.parts.forward_backward.interpret()
    draw_losses(history, args.out / "loss.png", say)
    say(f"{checkpoint}: step {run['step']} of {schedule.total}, {run['tokens_per_s']:.0f} tokens/s")
    if not args.no_eval:
        model.eval()
        model.active = config.layers
        sizes = token_bytes(args.data / "tokenizer.json")
        for path in sorted((args.data / "heldout").glob("*.bin")):
            r = evaluate(
                model, path, sizes, device, args.eval_tokens, autocast=device.type == "cuda"
            )
            spread = r.counts.float() / r.counts.float().mean(1, keepdim=True)
            say(
                f"  {path.stem:11s} {r.bits_per_byte:.4f} bits/byte over {r.tokens} tokens; "
                f"expert use {spread.min():.3f} .. {spread.max():.2f} of even"
            )


@contextlib.contextmanager
def _stop_wanted() -> Iterator[Callable[[], bool]]:
    """Hold Ctrl-C and SIGTERM back; the function given tells whether one came."""
    stops: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: stops.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield lambda: bool(stops)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _train(
    args: argparse.Namespace,
    config: MoeConfig,
    workers: Workers | Alone,
    schedule: Schedule,
    step: int,
    history: list[dict[str, float]],
    started: float,
    save: Callable[[int], None],
) -> dict[str, float]:
    from rich.console import Console
    from rich.progress import Progress, TimeElapsedColumn

    saved = started
    tokens = args.rows * (args.length or config.context)
    tokens_before = history[-1]["tokens"] if history else args.start_tokens
    pace: tuple[int, float] | None = None  # step and time from which speed is measured
    speed = 0.0
    console = Console(stderr=True)
    progress = Progress(
        *Progress.get_default_columns(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with progress as bar, _stop_wanted() as stop_wanted:
        task = bar.add_task(args.stage, total=schedule.total, completed=step)
        first = step
        while step < schedule.total:
            scale = schedule.scale(step)
            figures = workers.step(step, scale)
            step += 1
            bar.update(task, completed=step, total=schedule.total)
            stop = stop_wanted()
            if step % args.log_every and step - first != 5 and step != schedule.total and not stop:
                continue
            loss, balance, dropped = figures.tolist()  # waits for the device
            elapsed = time.monotonic() - started
            if pace is None:
                pace = (step, elapsed)
            elif step > pace[0]:
                seconds = (elapsed - pace[1]) / (step - pace[0])
                speed = tokens / seconds
                if args.plan_seconds and not schedule.in_decay(step):
                    schedule.total = step + max(1, int((args.plan_seconds - elapsed) / seconds))
            history.append(
                {
                    "stage": args.stage,
                    "step": step,
                    "loss": loss,
                    "balance": balance,
                    "dropped": dropped,
                    "lr": scale,
                    "tokens": tokens_before + (step - first) * tokens,
                    "seconds": elapsed,
                }
            )
            if step % (args.log_every * 5) == 0 or step - first <= args.log_every:
                say(
                    f"{args.stage} {step}/{schedule.total} loss {loss:.4f} balance {balance:.3f} "
                    f"dropped {dropped:.4f} rate {scale:.3f} {speed / 1e3:.1f}k tokens/s "
                    f"{elapsed:.0f} s"
                )
            if math.isnan(loss):
                sys.exit(f"step {step}: the loss is not a number; lower --lr and --muon-lr")
            if time.monotonic() - saved > args.save_seconds:
                save(step)
                saved = time.monotonic()
            if stop or (args.max_seconds and elapsed > args.max_seconds):
                break
    return {"step": step, "tokens_per_s": speed}


if __name__ == "__main__":
    main()
