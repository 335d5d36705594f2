"""`remoe-edge doctor`: what this machine and this installation can do."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from remoe_edge.cli.terminal import escape, tolerate_any_text


@click.command(name="doctor")
@click.argument("path", type=click.Path(path_type=Path), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(ctx: click.Context, /, path: Path | None, as_json: bool) -> None:
    """Check the installation, and the storage that PATH (a model or a folder) lies on.

    Without PATH: the model that comes along, or else the working folder. Each line says ok, off
    (it runs without, and why) or info. Ends with status 1 only if the engine cannot run.
    """
    from remoe_edge.inspect.doctor import can_run, examine

    tolerate_any_text()
    checks = examine(path or _default_path())
    runs = can_run(checks)
    if as_json:
        findings = {"can_run": runs, "checks": [asdict(check) for check in checks]}
        click.echo(json.dumps(findings, indent=1, ensure_ascii=False))
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
