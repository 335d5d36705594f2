"""`remoe-edge price`: measure what fewer reads cost in quality, and keep it beside the model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from remoe_edge.cli import lossy_options, options, text_option
from remoe_edge.cli.old_spellings import option
from remoe_edge.cli.results import give, write_json
from remoe_edge.cli.terminal import say, show_progress
from remoe_edge.errors import ReadError

if TYPE_CHECKING:
    from remoe_edge.quality.price_list import Price, PriceList
    from remoe_edge.quality.setting import Setting


@click.command(name="price")
@options.model
@text_option.text(more="A loss is that of the text that suffers most.", required=True)
@options.routers()
@options.cache(default="25%", more="It stays as it is while it is measured.")
@options.policy()
@options.window(default=256)
@options.data_tokens(default=2048)
@option(
    "--most-loss", default="5%", show_default=True, metavar="SHARE",
    help="Go on with a means until perplexity is worse by so much.",
)  # fmt: skip
@option(
    "--around", metavar="SHARE",
    help="Also look closer, between the settings that cost less than this and those that cost more.",
)  # fmt: skip
@option(
    "--resume", is_flag=True,
    help="Go on from the list that is there, if one is: what it holds is not measured again.",
)  # fmt: skip
@lossy_options.chosen
@options.threads()
@options.output("Without it, the result is kept beside the model, where --quality-loss finds it.")
@options.json_flag()
@options.plot("It shows bytes per token against perplexity, also of other lists beside the model.")
@click.pass_context
def command(
    context: click.Context,
    /,
    model: Path,
    texts: tuple[Path, ...],
    routers: str,
    cache: str,
    policy: str,
    window: int,
    data_tokens: int,
    most_loss: str,
    around: str | None,
    resume: bool,
    coarse: Path | None,
    threads: int | None,
    output: Path | None,
    as_json: bool,
    plot: Path | None,
    **means: float,
) -> None:
    """Measure what it costs MODEL to do without experts that would have to be read.

    Every means is measured over its range (docs/quality.md): perplexity and bytes read per token, each
    token decoded by itself; coarser experts where there is a file of them. `--quality-loss` of other
    commands then chooses from the result. What is measured is kept as it goes.

    If you name means, such as --skip-cold 0.1, that one setting is measured, and nothing else.
    """
    from remoe_edge.engine import budget
    from remoe_edge.engine.settings import EngineSettings
    from remoe_edge.files import coarse as coarse_files
    from remoe_edge.files.atomic import check_output, is_stream
    from remoe_edge.files.models import shipped_routers
    from remoe_edge.native import _core
    from remoe_edge.quality import price_list
    from remoe_edge.quality.choose import parse_loss
    from remoe_edge.quality.closer import closer
    from remoe_edge.quality.pricing import Pricing
    from remoe_edge.quality.setting import Setting
    from remoe_edge.quality.survey import survey

    budget.check(cache)
    if budget.is_followed(cache):
        raise click.UsageError(f"--cache {cache} may change meanwhile: give a size, such as 25%")
    overlay = None if routers == "off" else Path(routers)
    if routers in ("default", "on"):
        overlay = shipped_routers(model)
    most = parse_loss(most_loss)
    near = None if around is None else parse_loss(around)
    where = output or price_list.place(model, overlay)
    earlier = price_list.read(where, model, overlay) if resume and where.exists() else None
    asked = Setting(**means)
    if near is not None and asked != Setting():
        raise click.UsageError("--around looks between the settings of a whole list: name no means")
    beside = coarse_files.beside(model)
    if coarse is None and (asked.coarse_below or beside.is_file()):
        coarse = beside
    record = None
    if coarse is not None:
        record = coarse_files.check(coarse, _core.ModelFile.open(str(model)))
    for path in filter(None, (where, plot)):
        check_output(path, [model, *texts, *filter(None, (overlay, coarse))])
    settings = EngineSettings(
        cache=cache, routers=overlay, policy=policy, prefetch="off", n_ctx=window, threads=threads,
        coarse=coarse,
    )  # fmt: skip

    def keep() -> None:
        # A run takes hours, and may be killed. What cannot be written now is said at the end.
        if not is_stream(where):
            with suppress(ReadError):
                write_json(pricing.listed(tuple(prices.values()), record).to_dict(), where)

    pricing = Pricing(model, settings, texts, data_tokens, _progress)
    prices = {Setting(): pricing.lossless}
    if earlier is not None:
        prices |= {each.setting: each for each in pricing.fitting(earlier, record, str(where))}

    def measured(setting: Setting) -> Price:
        return prices[setting] if setting in prices else pricing.price(setting)

    def every() -> Iterator[Price]:
        if asked != Setting():
            yield measured(asked)
            return
        yield from survey(measured, pricing.top_k, most, coarse=record is not None)
        if near is not None:
            yield from closer(measured, tuple(prices.values()), near)

    finished = True
    try:
        for each in every():
            prices[each.setting] = each
            keep()
            show_progress("")
            say(_row(each, pricing.lossless))
    except KeyboardInterrupt:
        finished = False
    show_progress("")
    found = pricing.listed(tuple(prices.values()), record)
    table = "\n".join([_HEAD, *(_row(each, pricing.lossless) for each in found.prices)])
    try:
        if plot is not None:
            from remoe_edge.quality.plot import draw

            draw(_with_neighbours(found, where, model), plot)
    finally:
        give(found.to_dict(), where, as_json=as_json, show=lambda: click.echo(table))
    say(f"kept in {where}" if finished else f"stopped: {where} holds what was measured before")
    if not finished:
        context.exit(130)


def _progress(setting: Setting, n_tokens: int) -> None:
    show_progress(f"{setting}: {n_tokens} tokens")


_HEAD = (
    "KiB/token   saved  loss at worst  perplexity of that text  same token  swapped  skipped  coarse  "
    "setting"
)


def _row(price: Price, base: Price) -> str:
    worst = max(price.divergence, key=lambda name: price.divergence[name])
    saved = 1 - price.bytes_per_token / base.bytes_per_token if base.bytes_per_token else 0.0
    bounds = "(one window)"  # of which nothing says how far it may be off
    if math.isfinite(price.low[worst]):
        bounds = f"[{100 * price.low[worst]:+.2f}, {100 * price.high[worst]:+.2f}]"
    return (
        f"{price.bytes_per_token / 1024:9.1f}  {100 * saved:4.1f} %  "
        f"{100 * price.worst_loss:.2f} % {worst}  {100 * price.change[worst]:+.2f} % {bounds}  "
        f"{100 * price.agreement:.1f} %  {100 * price.swapped:.1f} %  {100 * price.skipped:.1f} %  "
        f"{100 * price.coarse:.1f} %  {price.setting}"
    )


def _with_neighbours(found: PriceList, where: Path, model: Path) -> dict[str, PriceList]:
    """Add the lists of the same model under other routers; those that cannot be read are left out."""
    from remoe_edge.errors import InputError
    from remoe_edge.quality import price_list

    lists = {}
    for path in sorted(model.parent.glob("*" + price_list.SUFFIX)):
        try:
            other = price_list.read_any(path)
        except InputError:
            continue
        if path != where and other.fingerprint == found.fingerprint:
            lists[path.name.removesuffix(price_list.SUFFIX)] = other
    return {where.name.removesuffix(price_list.SUFFIX): found, **lists}
