"""`remoe-edge plugin`: let programs of llama.cpp stream experts."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from remoe_edge.cli import options
from remoe_edge.cli.old_spellings import option
from remoe_edge.cli.terminal import say

_CHOICES = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "allow_interspersed_args": False,
}


@click.group(name="plugin")
def command() -> None:
    """Let llama-server, llama-cli and every other program of llama.cpp stream experts."""


def _kept() -> Path | None:
    """Say where this user's own plug-ins are kept; None without a home."""
    from remoe_edge.files.user_folder import home

    data = Path(os.environ.get("XDG_DATA_HOME", ""))
    if data.is_absolute():
        return data / "remoe-edge" / "plugin"
    folder = home()
    return None if folder is None else folder / ".local" / "share" / "remoe-edge" / "plugin"


@command.command()
@option(
    "--llama-cpp",
    type=options.FOLDER,
    metavar="DIR",
    help="The source tree of your llama.cpp, built with shared libraries. Without it, the plug-in is "
    "made for the installed llama-cpp-python.",
)
@option(
    "--libraries",
    type=options.FOLDER,
    metavar="DIR",
    help="Where its libggml-base.so lies, if not below --llama-cpp.",
)
@options.output_folder("Programs find it there if `plugin env` says so.")
def build(llama_cpp: Path | None, libraries: Path | None, output: Path | None) -> None:
    """Compile the plug-in for one llama.cpp: libremoe.so, and a core for that build of ggml."""
    from remoe_edge.plugin.compiler import compile_into, source_of

    folder = output or _kept()
    if folder is None:
        raise click.ClickException("this user has no home folder: say where with --output")
    core = compile_into(folder.absolute(), source_of(llama_cpp, libraries), say)
    click.echo(core)


def _settings(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that become REMOE_* variables."""
    for add in reversed(
        [
            options.cache(
                default="auto",
                more="With auto it is three quarters of what memory leaves after the dense weights.",
            ),
            options.policy(),
            options.prefetch(),
            options.routers(),
            options.profile(),
            option(
                "--experts-repack",
                type=click.Choice(["auto", "on", "off"]),
                default="auto",
                show_default=True,
                help="Rearrange experts for faster kernels; auto does as the program does.",
            ),
            option(
                "--status",
                default="on",
                show_default=True,
                metavar="on|off|FOLDER",
                help="Show the program in `remoe-edge top`.",
            ),
            option(
                "--log",
                type=click.Choice(["off", "error", "info"]),
                default="info",
                show_default=True,
                help="What the plug-in says on stderr.",
            ),
        ]
    ):
        function = add(function)
    return function


def _chosen(given: dict[str, Any]) -> dict[str, str]:
    """Turn options into settings; what was not given is left to the environment."""
    ctx = click.get_current_context()
    default = click.core.ParameterSource.DEFAULT
    chosen = {
        name: value for name, value in given.items() if ctx.get_parameter_source(name) != default
    }
    settings = {name.removeprefix("experts_"): str(value) for name, value in chosen.items()}
    if "cache" in settings:
        _check_cache(settings["cache"])
    if settings.get("routers") == "on":  # as `default` was once written
        settings["routers"] = "default"
    for name in ("routers", "profile", "status"):
        if settings.get(name) and settings[name] not in ("on", "off", "default"):
            settings[name] = os.path.abspath(settings[name])
    return settings


def _check_cache(spec: str) -> None:
    from remoe_edge.engine import budget

    budget.check(spec)
    if budget.is_plan(spec):
        raise click.ClickException(
            "a plug-in cannot plan: `remoe-edge plan` finds the size to give"
        )


def _environment(program: str | None, given: dict[str, Any]) -> dict[str, str]:
    from remoe_edge.plugin import builds, libraries
    from remoe_edge.plugin.environment import environment

    kept = _kept()
    if program is not None:
        path, ggml = libraries.of_program(program, dict(os.environ))
        if ggml is not None:
            builds.require_core(ggml, kept, str(path))
        else:
            libraries.refuse_static(path)
    more = kept if kept is not None and kept.is_dir() else None
    return environment(builds.entry(kept), more, _chosen(given), os.environ)


@command.command(context_settings=_CHOICES)
@_settings
@click.argument("program")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(program: str, arguments: tuple[str, ...], **given: Any) -> None:
    """Start PROGRAM with the plug-in: remoe-edge plugin run -- llama-server -m MODEL.

    Options before PROGRAM are ours, all after it are the program's.
    """
    added = _environment(program, given)
    os.execvpe(program, [program, *arguments], {**os.environ, **added})


@command.command()
@_settings
@option(
    "--for", "program", metavar="PROGRAM", help="Check that there is a plug-in for this program."
)
@option(
    "--plain",
    is_flag=True,
    help="Print NAME=value, as a unit's EnvironmentFile= and a container's --env-file read it.",
)
def env(program: str | None, plain: bool, **given: Any) -> None:
    """Print the environment that `plugin run` sets, for a shell, a unit file or a container."""
    added = _environment(program, given)
    unfit = [name for name, value in added.items() if not value.isprintable()]
    if plain and unfit:
        raise click.ClickException(f"{unfit[0]} has a line feed or the like: --plain has no quotes")
    for name, value in added.items():
        click.echo(f"{name}={value}" if plain else f"export {name}={shlex.quote(value)}")
