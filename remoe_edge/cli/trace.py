"""`remoe-edge trace`: record which experts each token is routed to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from remoe_edge.cli import options
from remoe_edge.cli.engine_options import engine_options, open_engine
from remoe_edge.cli.old_spellings import Old
from remoe_edge.cli.terminal import say, show_progress


@click.command(name="trace")
@options.prompts(required=True)
@options.output("It is a trace.", required=True)
@options.max_tokens(
    default=64, at_least=0, more="0 reads the prompts alone.", old=[Old("--answer")]
)
@options.raw()
@engine_options
@click.pass_context
def command(
    context: click.Context,
    /,
    prompts: Path,
    output: Path,
    max_tokens: int,
    raw: bool,
    **engine_settings: Any,
) -> None:
    """Record which experts MODEL's routers choose, and how probable they found each.

    Answers are greedy and not shown. Ctrl-C ends the recording early and keeps what there is.
    """
    from remoe_edge.files.atomic import check_output
    from remoe_edge.files.prompts import read_prompts
    from remoe_edge.routing.record_prompts import Recorded, record

    check_output(output, [prompts, engine_settings["model"]])
    texts = read_prompts(prompts)
    done = Recorded()
    finished = True
    with open_engine(trace=output, **engine_settings) as engine:
        plain = raw or engine.chat_template is None
        asked = []
        for text in texts:
            bos = True
            if not plain:
                text, _, bos = engine.render([{"role": "user", "content": text}])
            asked.append(engine.tokenize(text, special=not plain, bos=bos))

        def progress(so_far: Recorded) -> None:
            tokens = so_far.prompt_tokens + so_far.answer_tokens
            show_progress(f"{so_far.prompts}/{len(asked)} prompts, {tokens} tokens")

        try:
            record(engine, asked, max_tokens, progress, done)
        except KeyboardInterrupt:
            finished = False
        show_progress("")
        if engine.native is not None and engine.native.trace_events == 0:
            say(f"stopped before a step was recorded: nothing is written to {output}")
            context.exit(130)
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
