"""The `remoe-edge` command: one module per subcommand, each imported only when it is called for."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import sys

import click

from remoe_edge import __version__
from remoe_edge.cli.terminal import lost_output, open_closed_streams, say, tolerate_any_text
from remoe_edge.errors import RemoeError

# Subcommand -> (module of this package, one line for --help). A module exposes `command`.
COMMANDS: dict[str, str] = {
    "chat": "Talk to a model whose experts stream from storage.",
    "serve": "Serve a model to OpenAI's and Anthropic's clients, and in a browser.",
    "info": "Show a model's experts, sizes, memory floor and what fits here.",
    "doctor": "Show what this machine and this installation can do.",
    "probe": "Measure a file's storage: block size against depth.",
    "trace": "Record which experts each token is routed to.",
    "simulate": "Replay a trace through the eviction policies.",
    "profile": "Fit the eviction policy to a model's traces.",
    "convert": "Make, merge and extract tuned-router overlays.",
    "tune": "Fine-tune a model's routers to reuse experts.",
    "eval": "Compare routers: perplexity, reuse and cache misses.",
    "price": "Measure what fewer reads cost in quality.",
    "bench": "Measure a model on this machine against stock llama.cpp.",
    "plan": "Find the smallest memory budget that meets a latency target.",
    "plugin": "Let llama-server and other programs of llama.cpp stream experts.",
    "worker": "Hold experts in memory and compute them for engines elsewhere.",
    "deploy": "Have functions on Ray compute a model's rarer experts.",
    "keys": "Make the keys that engines and workers on other machines prove themselves with.",
    "top": "Watch a running engine.",
}


class LazyGroup(click.Group):
    """Import a subcommand's module when it is asked for, so that `--help` stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in COMMANDS if _exists(name)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS or not _exists(cmd_name):
            return None
        module = importlib.import_module(f"remoe_edge.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, COMMANDS[name]) for name in self.list_commands(ctx)]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except RemoeError as error:
            raise click.ClickException(str(error)) from error
        except MemoryError as error:
            raise click.ClickException("there is not enough memory for this") from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # `| head`: click ends quietly
                raise
            where = "" if error.filename is None else f"{error.filename}: "
            raise click.ClickException(f"{where}{error.strerror or error}") from error


def _exists(name: str) -> bool:
    return importlib.util.find_spec(f"remoe_edge.cli.{name}") is not None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="remoe-edge")
def cli() -> None:
    """Run Mixture-of-Experts models bigger than memory, losslessly."""
    tolerate_any_text()


def main() -> None:
    """Run the command line; answers go to stdout, everything else to stderr."""
    open_closed_streams()
    code: int | str | None = None
    try:
        cli(standalone_mode=True)
    except KeyboardInterrupt:
        code = 130
    except SystemExit as ended:
        code = ended.code
    except OSError as error:  # of what click itself prints: a page of help
        say(f"Error: {error.strerror}")
        code = 1
    lost = lost_output()
    if lost is not None and not code:
        say(f"Error: {lost.strerror}")
        code = 1
    sys.exit(code)
