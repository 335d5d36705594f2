"""`remoe-edge trace`: record which experts each token is routed to."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from remoe_edge.cli.engine_options import engine_options, open_engine
from remoe_edge.cli.terminal import say


@click.command(name="trace")
@click.option(
    "--prompts",
    "prompts_path",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help='What to run: .jsonl with a "prompt" a line, or texts with a line `---` between them.',
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="TRACE",
    help="The trace to write.",
)
@click.option(
    "-n",
    "--answer",
    "n_answer",
    type=click.IntRange(min=0),
    default=64,
    show_default=True,
    metavar="N",
    help="Tokens of an answer, at most; 0 reads the prompts alone.",
)
@click.option("--raw", is_flag=True, help="Continue the prompts, without a chat template.")
@engine_options
@click.pass_context
def command(
    context: click.Context,
    /,
    prompts_path: Path,
    output: Path,
    n_answer: int,
    raw: bool,
    **engine_settings: Any,
) -> None:  # fmt: skip
    """Record every layer's routed experts and router probabilities while a model reads and answers.

    Answers are greedy and not shown. Ctrl-C ends the recording early and keeps what there is.
    """
    from remoe_edge.files.atomic import check_output
    from remoe_edge.files.prompts import read_prompts
    from remoe_edge.routing.record_prompts import Recorded, record

    check_output(output, [prompts_path, *filter(None, [engine_settings["model"]])])
    texts = read_prompts(prompts_path)
    done = Recorded()
    finished = True
    with open_engine(trace=output, **engine_settings) as engine:
        plain = raw or engine.chat_template is None
        prompts = []
        for text in texts:
            bos = True
            if not plain:
                text, _, bos = engine.render([{"role": "user", "content": text}])
            prompts.append(engine.tokenize(text, special=not plain, bos=bos))

        def progress(so_far: Recorded) -> None:
            if sys.stderr.isatty():
                tokens = so_far.prompt_tokens + so_far.answer_tokens
                bar = f"\r\033[K{so_far.prompts}/{len(prompts)} prompts, {tokens} tokens"
                click.echo(bar, nl=False, err=True)

        try:
            record(engine, prompts, n_answer, progress, done)
        except KeyboardInterrupt:
            finished = False
        if sys.stderr.isatty():
            click.echo("\r\033[K", nl=False, err=True)
        if not engine.router_probabilities:
            say("this model's graph does not show its router's probabilities: recorded without")
    if done.cut:
        say(f"{done.cut} prompts are longer than the context and were read in parts: raise --ctx")
    if not finished:
        say(f"stopped: {output} holds the steps before")
    cost = "" if done.cost is None else f"; recording took {done.cost:.2%} of decoding"
    click.echo(
        f"{output}: {done.prompts} prompts, {done.prompt_tokens} + {done.answer_tokens} tokens, "
        f"{output.stat().st_size / 2**20:.1f} MiB{cost}"
    )
    if not finished:
        context.exit(130)
