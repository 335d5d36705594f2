"""`remoe-edge doctor`: what this machine and this installation can do."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from remoe_edge.cli import options
from remoe_edge.cli.results import print_json
from remoe_edge.cli.terminal import escape


@click.command(name="doctor")
@click.argument("path", type=options.PATH, required=False, metavar="[PATH]")
@options.json_flag()
@click.pass_context
def command(ctx: click.Context, /, path: Path | None, as_json: bool) -> None:
    """Check the installation, and the storage that PATH (a model or a folder) lies on.

    Without PATH it looks at the model that comes with remoe-edge, or else at the working folder. Each
    line says ok, off (it works without; the line says why) or info. The exit status is 1 only if the
    engine cannot run.
    """
    from remoe_edge.inspect.doctor import can_run, examine

    checks = examine(path or _default_path())
    runs = can_run(checks)
    if as_json:
        findings = {"can_run": runs, "checks": [asdict(check) for check in checks]}
        print_json(findings)
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            advice = f" -> {check.advice}" if check.advice else ""
            click.echo(f"{check.state:<4}  {check.name:<{width}}  {escape(check.detail + advice)}")
    if not runs:
        ctx.exit(1)


def _default_path() -> Path:
    from remoe_edge.errors import InputError
    from remoe_edge.files.models import shipped_model

    try:
        return shipped_model()
    except InputError:
        return Path.cwd()
