"""Keys for engines and workers: a private authority, and what it has signed (docs/remote.md)."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from remoe_edge.errors import InputError, UnsupportedError
from remoe_edge.files.atomic import errors_naming
from remoe_edge.files.keys_file import check_keys_file

AUTHORITY = "authority.key"
ROLES = {"worker": "serverAuth", "client": "clientAuth"}
_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def make_keys(folder: Path, *, days: int = 3650) -> list[Path]:
    """Write `worker.pem` and `client.pem` into a folder, and the authority that signs more of them.

    Each file is a private key, its certificate and the authority's certificate. Run again with the
    same folder, the authority stays and both are made anew, so that old ones go on working until their
    `days` are over. Uses the program `openssl`. Raises UnsupportedError without it.
    """
    if shutil.which("openssl") is None:
        raise UnsupportedError("keys are made by the program openssl: apt install openssl")
    if days < 0:
        raise InputError("keys hold for at least 0 days")
    with tempfile.TemporaryDirectory() as scratch, errors_naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        authority = folder / AUTHORITY
        if not authority.exists():
            _write(authority, _authority(Path(scratch)))
        check_keys_file(authority)
        written = [authority]
        for name, usage in ROLES.items():
            target = folder / f"{name}.pem"
            _write(target, _signed(Path(scratch), authority, name, usage, days))
            written.append(target)
    return written


def _write(target: Path, text: str) -> None:
    """Write what nobody else may read."""
    partial = target.with_name(f".{target.name}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    partial.replace(target)


def _authority(scratch: Path) -> str:
    key, certificate = scratch / "authority-key", scratch / "authority"
    _openssl(
        "req", "-x509", *_CURVE, "-keyout", str(key), "-out", str(certificate), "-days", "36500",
        "-subj", "/CN=remoe-edge authority",
        "-addext", "basicConstraints=critical,CA:TRUE",
        "-addext", "keyUsage=critical,keyCertSign",
    )  # fmt: skip
    return key.read_text() + certificate.read_text()


def _signed(scratch: Path, authority: Path, name: str, usage: str, days: int) -> str:
    key, request, certificate = (scratch / f"{name}-{part}" for part in ("key", "request", "crt"))
    extensions = scratch / f"{name}-extensions"
    extensions.write_text(
        f"basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n"
        f"extendedKeyUsage={usage}\n"
    )
    _openssl(
        "req", *_CURVE, "-keyout", str(key), "-out", str(request), "-subj", f"/CN=remoe-edge {name}"
    )
    _openssl(
        "x509", "-req", "-in", str(request), "-CA", str(authority), "-CAkey", str(authority),
        "-set_serial", f"0x{os.urandom(16).hex()}", "-days", str(days),
        "-extfile", str(extensions), "-out", str(certificate),
    )  # fmt: skip
    authority_certificate = scratch / "authority-certificate"
    _openssl("x509", "-in", str(authority), "-out", str(authority_certificate))
    return key.read_text() + certificate.read_text() + authority_certificate.read_text()


def _openssl(*arguments: str) -> None:
    done = subprocess.run(
        ["openssl", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        errors="replace", check=False,
    )  # fmt: skip
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise InputError(f"openssl {arguments[0]} failed: {said[-1] if said else done.returncode}")
