"""`remoe-edge deploy`: have functions on Ray compute a model's rarer experts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from remoe_edge.cli import options, placement_options
from remoe_edge.cli.deployment_folder import folder
from remoe_edge.cli.numbers import Number
from remoe_edge.cli.old_spellings import option
from remoe_edge.cli.results import print_json
from remoe_edge.cli.terminal import say, show_progress

if TYPE_CHECKING:
    from remoe_edge.deploy.record import Deployment

KEEP_S = 15.0


class WithDefault(click.Group):
    """Take what names no subcommand as arguments of `up`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `up` in front."""
        asks_help = bool(args) and args[0] in ("-h", "--help")
        if not asks_help and (not args or args[0] not in self.commands):
            args = ["up", *args]
        return super().parse_args(ctx, args)


@click.group(cls=WithDefault)
def command() -> None:
    """Have functions on Ray compute a model's rarer experts.

    `remoe-edge deploy MODEL --slo ...` is short for `remoe-edge deploy up MODEL --slo ...`.
    """


@command.command(name="up")
@options.model
@placement_options.slo(required=True)
@placement_options.price(default="lifetime")
@option(
    "--ray",
    metavar="ADDRESS",
    help="A Ray cluster, as HOST:PORT; without it, Ray is started on this machine.",
)
@options.memory(
    more="It is for this machine, without it what is free; less leaves more experts to functions."
)
@option(
    "--worker-keys",
    type=options.FILE,
    metavar="FILE",
    help="With --ray: where each node has the worker.pem of `remoe-edge keys`. Without it only functions "
    "on this machine are used.",
)
@placement_options.link()
@placement_options.function_times()
@placement_options.trace_file()
@placement_options.prompt_tokens()
@options.max_tokens(default=256)
@option(
    "--functions",
    "n_functions",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    metavar="N",
    help="Deploy so many functions: the first has what every layer uses most of its remote experts.",
)
@option(
    "--keep",
    "keep_s",
    type=Number(min=0.5),
    default=KEEP_S,
    show_default=True,
    metavar="SECONDS",
    help="A function that nobody has leased for so long ends.",
)
@option(
    "--conversations",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Conversations that may go on at a time; each has replicas of its own.",
)
@option(
    "--as",
    "name",
    metavar="NAME",
    help="What the deployment is called; the model's name without it.",
)
@options.context()
@options.threads()
@options.fresh("Measures this machine again.")
@option(
    "--run/--no-run",
    "runs",
    default=True,
    show_default=True,
    help="Serve the model here, with the functions, until Ctrl-C.",
)
@option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, metavar="PORT",
    help="Listen at this port; 0 takes a free one.",
)  # fmt: skip
@click.pass_context
def up(
    context: click.Context,
    /,
    model: Path,
    slo: str,
    price: str,
    ray: str | None,
    worker_keys: Path | None,
    memory: str | None,
    link: str,
    function_times: Path | None,
    trace_path: Path | None,
    prompt_tokens: int,
    max_tokens: int,
    n_functions: int,
    keep_s: float,
    conversations: int,
    name: str | None,
    n_ctx: int,
    threads: int | None,
    fresh: bool,
    runs: bool,
    port: int,
) -> None:
    """Plan which experts of MODEL go to functions, deploy those on Ray Serve, and run the model.

    Functions start when a prompt wants them, and end when nobody has leased them for a while. Until one
    is there, its experts come from storage. Ctrl-C ends the model; `remoe-edge deploy down` ends the
    functions. Needs `pip install remoe-edge[remote]`.
    """
    from remoe_edge.cli.placement_lines import placement_lines
    from remoe_edge.deploy.deploying import bounded, deploy
    from remoe_edge.deploy.ray_process import check_installed, check_reachable
    from remoe_edge.deploy.record import check_name, path_of
    from remoe_edge.engine.settings import EngineSettings
    from remoe_edge.errors import InputError
    from remoe_edge.machine.memory import available
    from remoe_edge.placement.price import load
    from remoe_edge.placement.request import Workload
    from remoe_edge.plan.remote import parse_link, parse_slo, run_placement
    from remoe_edge.units import parse_bytes

    if not model.is_file():
        raise InputError(f"no model at {model}")
    check_installed()
    if ray is not None:
        check_reachable(ray)
    name = check_name(model.stem if name is None else name)
    if path_of(folder(), name).exists():
        raise InputError(f"{name} is deployed already: remoe-edge deploy down {name}")
    settings = EngineSettings(n_ctx=n_ctx, threads=threads)
    most = available().available_bytes if memory is None else parse_bytes(memory)
    placement = run_placement(
        model, settings, table=bounded(load(price), most),
        slo=parse_slo(slo), link=parse_link(link), workload=Workload(prompt_tokens, max_tokens),
        trace_path=trace_path, function_times=function_times, fresh=fresh, progress=show_progress,
    )  # fmt: skip
    show_progress("")
    for line in [f"note: {note}" for note in placement.notes] + placement_lines(placement):
        say(line)
    path, deployment = deploy(
        model, placement, folder=folder(), name=name, ray=ray, n_functions=n_functions,
        threads=settings.n_cores, keep_s=keep_s, conversations=conversations,
        worker_keys=worker_keys, progress=show_progress,
    )  # fmt: skip
    show_progress("")
    for line in _lines(deployment, None):
        say(line)
    if worker_keys is not None:
        say(f"chat with it: remoe-edge chat {model} --deployment {name} --keys client.pem")
        return
    if not runs:
        say(f"chat with it: remoe-edge chat {model} --deployment {name}")
        return
    from remoe_edge.cli.serve import command as serve

    words = [str(model), "--deployment", str(path), "--port", str(port), "--ctx", str(n_ctx)]
    words += [] if threads is None else ["--threads", str(threads)]
    with serve.make_context("serve", words, parent=context) as asked:
        serve.invoke(asked)


@command.command(name="status")
@click.argument("name", required=False)
@options.json_flag()
def status(name: str | None, as_json: bool) -> None:
    """Tell what is deployed: each function's state, and how many replicas run."""
    from remoe_edge.deploy import local_ray, ray_process, record
    from remoe_edge.errors import RemoeError

    paths = [record.find(folder(), name)] if name else record.everything(folder())
    told = []
    for path in paths:
        deployment = record.load(path)
        found: dict[str, Any] = {"name": deployment.name, "model": deployment.model}
        found["ray"] = deployment.ray.address
        try:
            if deployment.ray.pid and not local_ray.alive(deployment.ray):
                raise RemoeError("Ray has ended: remoe-edge deploy down removes what is left")
            found["functions"] = ray_process.status(deployment)
        except RemoeError as error:
            found["error"] = str(error)
        told.append(found)
        if not as_json:
            for line in _lines(deployment, found):
                click.echo(line)
    if as_json:
        print_json(told)
    elif not told:
        click.echo("nothing is deployed")


@command.command(name="down")
@click.argument("name", required=False)
def down(name: str | None) -> None:
    """End a deployment: its functions, and Ray if it was started for them."""
    from remoe_edge.deploy import record
    from remoe_edge.deploy.deploying import take_down

    deployment = take_down(record.find(folder(), name))
    click.echo(f"{deployment.name} is down")


def _lines(deployment: Deployment, found: dict[str, Any] | None) -> list[str]:
    from remoe_edge.units import mib

    ray = deployment.ray
    lines = [
        f"{deployment.name}: {Path(deployment.model).name}, {len(deployment.functions)} functions on Ray "
        f"at {ray.address}" + (" (started here)" if ray.pid else "")
    ]
    if found is not None and "error" in found:
        return [*lines, f"  {found['error']}"]
    for each in deployment.functions:
        line = (
            f"  {each.name}: {len(each.experts)} experts, {mib(each.memory_bytes)}, up to "
            f"{each.replicas} replicas of {each.threads} threads, {each.rows:.3g} rows a token expected"
        )
        if found is not None:
            state = found["functions"][each.name]
            replicas = ", ".join(f"{n} {kind.lower()}" for kind, n in state["replicas"].items())
            line += f"; {state['status'].lower()}, {replicas or 'no replica'}"
            line += f" ({state['message']})" if state["message"] else ""
        lines.append(line)
    return lines
