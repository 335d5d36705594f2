"""Write a file, or a folder, that is there whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from remoe_edge.errors import InputError, ReadError
from remoe_edge.files.reading import open_regular

# Bytes done, bytes in all.
Progress = Callable[[int, int], None]

_PIECE_BYTES = 16 << 20
_STEM_BYTES = 200  # of an output's name in that of its temporary file: names have up to 255
_MOST_LINKS = 40  # in a row, as the kernel has it
_MODEL = b"GGUF"
_SHARD = re.compile(r"(.*)-\d{5}-of-(\d{5})\.gguf", re.DOTALL)
# Between file systems, and on old kernels, copy_file_range fails; plain reads and writes do.
_NOT_IN_KERNEL = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


def check_output(output: Path, inputs: Sequence[str | Path], *, is_made: bool = True) -> None:
    """Refuse, before any work, an output that is an input under any name, or that has no folder.

    Of a split model, whose first shard is an input, every shard is one. is_made: it is written soon, and
    where it should be there must be room for it. Raises InputError.
    """
    for source in inputs:
        for path in (Path(source), *_shards_beside(Path(source))):
            if _is_same(output, path):
                raise InputError(f"{output} is the input {path}; give another output")
    if not is_made:
        return
    if output.is_dir():
        raise InputError(f"{output} is a folder; give the path of a file")
    folder = Path(os.path.realpath(output)).parent  # of what a link names
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist; create it first")
    if not is_stream(output) and not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{folder} cannot be written to; give another output")


def _is_same(one: Path, other: Path) -> bool:
    try:
        # Follows symbolic links, and compares inodes: a hard link is the same file too.
        return os.path.samefile(one, other)
    except (OSError, ValueError):  # one is still to be made
        return os.path.realpath(one) == os.path.realpath(other)


def _shards_beside(path: Path) -> list[Path]:
    shard = _SHARD.fullmatch(path.name)
    if shard is None:
        return []
    return [
        path.with_name(f"{shard[1]}-{n:05}-of-{shard[2]}.gguf") for n in range(1, int(shard[2]) + 1)
    ]


def refuse_to_replace_model(output: Path, begins_with: bytes = b"") -> None:
    """Raise InputError where a model lies at `output` and what takes its place is none."""
    try:
        with open_regular(output, "file") as file:
            is_model = file.read(len(_MODEL)) == _MODEL
    except InputError:  # nothing is there, or nothing that holds a model
        return
    if is_model and not begins_with.startswith(_MODEL):
        raise InputError(f"{output} is a GGUF, which would be lost; give another output")


def check_space(folder: Path, n_bytes: int) -> None:
    """Raise InputError when a file system cannot take `n_bytes` more."""
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise InputError(f"{folder} has {free >> 20} MiB free, {n_bytes >> 20} MiB are needed")


@contextmanager
def replacing(outputs: Sequence[Path]) -> Iterator[list[Path]]:
    """Yield a temporary path beside each output; rename all when the block ends well.

    After an error, Ctrl-C included, the temporary files are gone and the outputs are as before. What
    a symbolic link points to is replaced, and the link stays. Files keep the permissions they have;
    new ones get those of a plain open().

    Of several outputs the first is the one by which the others are found. It is the first to go and the
    last to come: after a crash in between there is no file of its name, so that nobody takes old and
    new for one set, and `cut_short` finds what was there.
    """
    if len(outputs) == 1 and is_stream(outputs[0]):
        with _written_through(outputs[0]) as path:
            yield [path]
        return
    outputs = [Path(os.path.realpath(output)) for output in outputs]
    for output in outputs:
        refuse_to_replace_device(output)
    partial: list[Path] = []
    try:
        with errors_naming(outputs[0]):
            for output in outputs:
                partial.append(_create_beside(output))
            yield partial
            for path, output in zip(partial, outputs, strict=True):
                with path.open("rb") as file:
                    refuse_to_replace_model(output, file.read(len(_MODEL)))
                _sync(path)
            if len(outputs) == 1:
                os.replace(partial[0], outputs[0])
            else:
                _replace_set(partial, outputs)
    finally:
        for path in partial:
            path.unlink(missing_ok=True)


def write_text(text: str, path: Path) -> None:
    """Write a text into a file, whole or not at all. Raises ReadError, which names the path.

    Bytes of a name that are no UTF-8 are lone surrogates in `text`. They become escapes, which JSON
    reads as what they were.
    """
    write_bytes(text.encode("utf-8", "backslashreplace"), path)


def write_bytes(data: bytes, path: Path) -> None:
    """Write bytes into a file, whole or not at all. Raises ReadError, which names the path."""
    with replacing([path]) as (part,):
        part.write_bytes(data)


def cut_short(path: Path) -> str:
    """Return what to say of a file that is missing since its set was being replaced; "" of others."""
    real = Path(os.path.realpath(path))
    stem = os.fsdecode(os.fsencode(real.name)[:_STEM_BYTES])
    try:
        names = sorted(each for each in os.listdir(real.parent) if _is_of(each, stem))
    except OSError:
        return ""
    if not names:
        return ""
    return f"; replacing it was cut short, and what was there lies beside it as {', '.join(names)}"


def _is_of(name: str, stem: str) -> bool:
    return name.startswith(f".{stem}.") and name.endswith(".old")


def _beside(output: Path, what: str) -> Path:
    """Return a new hidden name in an output's folder, short enough for any file system."""
    stem = os.fsdecode(os.fsencode(output.name)[:_STEM_BYTES])
    return output.absolute().parent / f".{stem}.{secrets.token_hex(4)}.{what}"


def descriptor_of(path: Path) -> int | None:
    """Say which file that this process has open a path names, as /dev/stdout does; None for others.

    What it leads to is its owner's, who may have written to it before and go on after.
    """
    own = os.path.realpath("/proc/self/fd")
    path = path.absolute()
    for _ in range(_MOST_LINKS):
        folder = os.path.realpath(path.parent)
        if folder == own:
            return int(path.name) if path.name.isdecimal() else None
        if not path.is_symlink():
            break
        path = Path(folder) / os.readlink(path)
    return None


def is_stream(output: Path) -> bool:
    """Say whether something is written to, such as /dev/null, /dev/stdout or a pipe, and not replaced."""
    if descriptor_of(output) is not None:
        return True
    try:
        mode = output.stat().st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


def refuse_to_replace_device(output: Path) -> None:
    """Raise InputError where something other than a file would be gone from under its name."""
    is_file = os.path.isfile(output) or not os.path.exists(output)
    if not is_file or descriptor_of(output) is not None:
        raise InputError(f"{output} is no file that can be written anew; give another output")


@contextmanager
def _written_through(output: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder, errors_naming(output):
        path = Path(folder) / "output"
        yield path
        number = descriptor_of(output)
        to = output if number is None else os.dup(number)  # opened anew, what it has would be gone
        with path.open("rb") as reader, open(to, "wb") as writer:
            shutil.copyfileobj(reader, writer)


def _replace_set(partial: Sequence[Path], outputs: Sequence[Path]) -> None:
    old: list[tuple[Path, Path]] = []
    placed: list[Path] = []
    try:
        for output in outputs:
            if os.path.lexists(output):
                kept = _beside(output, "old")
                os.rename(output, kept)
                old.append((kept, output))
        for path, output in reversed(list(zip(partial, outputs, strict=True))):
            os.rename(path, output)
            placed.append(output)
    except BaseException:
        for output in placed:
            output.unlink(missing_ok=True)
        for kept, output in reversed(old):
            os.rename(kept, output)
        raise
    for kept, _ in reversed(old):
        kept.unlink(missing_ok=True)


@contextmanager
def errors_naming(output: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write into one line."""
    try:
        yield
    except OSError as error:
        way_out = "; free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise ReadError(f"cannot write {output}: {error.strerror or error}{way_out}") from error


def copy_bytes(source: str | Path, target: Path, progress: Progress | None = None) -> None:
    """Copy a file's bytes, inside the kernel where it can."""
    with open(source, "rb") as reader, open(target, "wb") as writer:
        origin, goal = reader.fileno(), writer.fileno()
        n_bytes = os.fstat(origin).st_size
        move = _move_in_kernel
        done = 0
        while done < n_bytes:
            try:
                moved = move(origin, goal, min(_PIECE_BYTES, n_bytes - done), done)
            except OSError as error:
                if move is _move or error.errno not in _NOT_IN_KERNEL:
                    raise
                move = _move
                continue
            if moved == 0:
                raise ReadError(f"{source} became shorter while it was copied")
            done += moved
            if progress is not None:
                progress(done, n_bytes)


def _move_in_kernel(origin: int, goal: int, n_bytes: int, offset: int) -> int:
    return os.copy_file_range(origin, goal, n_bytes, offset, offset)


def _move(origin: int, goal: int, n_bytes: int, offset: int) -> int:
    piece = os.pread(origin, n_bytes, offset)
    return os.pwrite(goal, piece, offset) if piece else 0


def overwrite(target: Path, offset: int, raw: bytes) -> None:
    """Put bytes over a part of a file that exists."""
    with open(target, "r+b") as file:
        file.seek(offset)
        file.write(raw)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create_beside(output: Path) -> Path:
    """Make an empty file in the output's folder, with the permissions that writing into it would keep.

    The kernel applies the umask. To ask for it, one has to change it, for other threads' files too.
    """
    while True:
        path = _beside(output, "partial")
        with suppress(FileExistsError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            break
    try:
        with suppress(OSError):  # nothing there yet, or a file system without permissions
            os.fchmod(descriptor, output.stat().st_mode & 0o777)
    finally:
        os.close(descriptor)
    return path
