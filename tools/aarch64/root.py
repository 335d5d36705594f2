"""An aarch64 Debian in a folder, unpacked and not configured, and programs that run in it under qemu.

debootstrap fetches the packages and checks their signatures; unpacking them all is enough to run Python,
and saves the hour in which an emulated dpkg would configure them.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from aarch64.steps import PROJECT, Place, StepError

PACKAGES = (
    "python3", "python3-venv", "python3-pip", "libgomp1", "libstdc++6", "libssl3", "libasan8",
    "libubsan1",
)  # fmt: skip
# What `pip install 'remoe-edge[test]'` brings, but for what is built here.
PYTHON_PACKAGES = (
    "jinja2>=3.1", "numpy>=1.26", "gguf>=0.17", "psutil>=5.9", "click>=8.1", "rich>=13",
    "typing-extensions>=4.5", "diskcache>=5.6", "starlette>=0.40", "uvicorn>=0.30",
    "prometheus-client>=0.20", "pytest>=8", "hypothesis>=6",
)  # fmt: skip
_BINFMT = Path("/proc/sys/fs/binfmt_misc")
# The magic of an aarch64 ELF file. P keeps the program's own name, F the interpreter across a chroot.
_RULE = (
    r":remoe-aarch64:M::\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
    r":\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:{}:OPF"
)
_INTERPRETERS = ("/usr/libexec/qemu-binfmt/aarch64-binfmt-P", "/usr/bin/qemu-aarch64-static")


class Root:
    """The folder of an aarch64 system. It is changed only from this machine, not from inside."""

    def __init__(self, place: Place, suite: str) -> None:
        self._place = place
        self._suite = suite
        self.path = place.folder / "root"

    def make(self) -> None:
        """Fetch and unpack the system."""
        if self.path.exists():
            shutil.rmtree(self.path)
        self._place.command("root", [
            "debootstrap", "--arch=arm64", "--foreign", "--variant=minbase",
            f"--include={','.join(PACKAGES)}", self._suite, self.path,
        ])  # fmt: skip
        for deb in sorted((self.path / "var/cache/apt/archives").glob("*.deb")):
            unpack = f"dpkg-deb --fsys-tarfile {shlex.quote(str(deb))} | tar -xkf - 2>/dev/null"
            # tar -k keeps what is there (/lib is a link) and says so with a status of its own.
            subprocess.run(["bash", "-c", unpack], cwd=self.path, check=False)
        self.output(["/usr/bin/python3", "-c", "import ssl, ctypes"])

    def install(self, wheels: Sequence[Path], site: Path) -> None:
        """Unpack wheels into a folder of packages in the system: `/site` for its programs."""
        for wheel in wheels:
            self._place.command("install", [
                "python3", "-m", "zipfile", "-e", wheel, site
            ])  # fmt: skip

    def copy_project(self, to: Path) -> None:
        """Copy what git knows of the project, or would know, into the system."""
        shutil.rmtree(to, ignore_errors=True)
        to.mkdir(parents=True)
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=PROJECT, capture_output=True, check=True,
        ).stdout  # fmt: skip
        for name in filter(None, listed.decode().split("\0")):
            source = PROJECT / name
            # The sources of the package hold no core: the installed one must be found.
            if name.startswith("remoe_edge/") or not source.is_file():
                continue
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, to / name)

    def words(self, command: Sequence[str], cwd: str = "/") -> list[str]:
        """Return the command that runs `command` inside, with mounts that end with it."""
        root = shlex.quote(str(self.path))
        script = (
            f"mount -t proc proc {root}/proc && mount -t sysfs sys {root}/sys && "
            f"mount --rbind /dev {root}/dev && mount --rbind /sys/fs/cgroup {root}/sys/fs/cgroup; "
            f"exec chroot {root} /usr/bin/env -C {shlex.quote(cwd)} {shlex.join(command)}"
        )
        return ["unshare", "--mount", "--fork", "bash", "-c", script]

    def output(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
        """Run a command inside and return what it says. Raises StepError if it fails."""
        done = subprocess.run(
            self.words(command),
            env=inside(environment),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise StepError(f"{shlex.join(command)} failed under qemu: {done.stderr[-800:]}")
        return done.stdout


def inside(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a program inside: nothing of this machine's but the terminal's kind."""
    own = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/root", "LC_ALL": "C.UTF-8"}
    return {**own, "TERM": os.environ.get("TERM", "dumb"), **(environment or {})}


@contextlib.contextmanager
def emulated() -> Iterator[None]:
    """Have the kernel run aarch64 programs by qemu; takes the rule back if it was not there before."""
    if not (_BINFMT / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(_BINFMT)], check=False)
    if not (_BINFMT / "register").exists():
        raise StepError(f"the kernel has no {_BINFMT}, which takes root and CONFIG_BINFMT_MISC")
    if any("aarch64" in rule.name for rule in _BINFMT.iterdir()):
        yield
        return
    interpreter = next((each for each in _INTERPRETERS if Path(each).exists()), None)
    if interpreter is None:
        raise StepError("qemu is missing: apt install qemu-user-static")
    (_BINFMT / "register").write_text(_RULE.format(interpreter))
    try:
        yield
    finally:
        (_BINFMT / "remoe-aarch64").write_text("-1")
