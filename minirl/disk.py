"""Files and folders that are whole or absent, whose bits are known, and that one process writes at a time.

What cannot be written is a DiskError: one sentence with the folder in it and what to do about it.
"""

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

NO_QUOTA = getattr(errno, "EDQUOT", errno.ENOSPC)


class DiskError(OSError):
    """The disk refused. The message names the folder and says what to do; what was saved before is whole."""

    def __str__(self) -> str:
        return self.strerror


@contextlib.contextmanager
def naming(folder: Path) -> Iterator[None]:
    """An OSError inside becomes a DiskError about this folder."""
    try:
        yield
    except DiskError:
        raise
    except (OSError, SafetensorError) as error:
        number, reason, file = _told(error)
        if number is None:
            raise
        again = "the same command with --resume goes on from the last checkpoint"
        if number in (errno.ENOSPC, NO_QUOTA):
            said = f"no room left on the disk ({reason}). What was saved before is whole. Make room, then {again}"
        elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
            said = f"no right to read or write {file} ({reason}). Mend that, or choose another --out"
        elif number in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
            said = f"{file} is in the way ({reason}). Move it, or choose another --out"
        else:
            said = f"{reason}. What was saved before is whole: {again}"
        raise DiskError(number, f"{folder}: {said}") from error


def _told(error: OSError | SafetensorError) -> tuple[int | None, str, str]:
    """(number, reason, file) of an error. safetensors writes by itself, and tells what the system said as text."""
    if isinstance(error, OSError):
        return error.errno, error.strerror or str(error), str(error.filename or "something here")
    match = re.search(r"(.*)\(os error (\d+)\)", str(error))
    return (int(match[2]), match[1].rpartition("error: ")[2].strip(), "it") if match else (None, "", "")


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def free_name(path: Path) -> Path:
    """This name, or with _2, _3, ... after its stem the first that nothing has."""
    n, free = 1, path
    while free.exists():
        n += 1
        free = path.with_name(f"{path.stem}_{n}{path.suffix}")
    return free


def write_aside(path: Path, data: bytes) -> None:
    """Replace a file in one step: a reader, or the next start after a crash, sees the old one or the new one."""
    aside = path.with_name(path.name + ".aside")
    with naming(path.parent):
        try:
            write_synced(aside, data)
            os.replace(aside, path)
        except OSError:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_json(path: Path, value) -> None:
    write_aside(path, (json.dumps(value, indent=1) + "\n").encode())


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """An empty folder to write into, which takes the place of `folder` at the end, and only if nothing went wrong.

    A folder cannot be replaced in one step. Killed between the two renames, the old one is whole as NAME.before.
    """
    aside, before = (folder.with_name(f"{folder.name}.{end}") for end in ("aside", "before"))
    with naming(folder):
        remove(aside)
        aside.mkdir(parents=True)
        try:
            yield aside
            for path in aside.rglob("*"):
                sync(path)
            if folder.exists():
                remove(before)
                folder.rename(before)
            aside.rename(folder)
            sync_folder(folder.parent)
            remove(before)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def write_sums(folder: Path) -> None:
    """FOLDER.sha256 beside the folder, as `sha256sum -c` reads it: the checksum of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{_sum_of(path)}  {path.relative_to(folder.parent).as_posix()}\n" for path in files]
    write_aside(sums_of(folder), "".join(lines).encode())


def check_sums(folder: str | Path) -> None:
    """ValueError, naming the file, if one is not what FOLDER.sha256 says. Without such a list nothing is checked."""
    folder = Path(folder).resolve()
    listed = sums_of(folder)
    for number, line in enumerate(listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else [], start=1):
        expected, _, name = line.partition("  ")
        path = folder.parent / name
        if not name:
            raise ValueError(f"{listed}, line {number}: wanted a checksum and a name; remove the list to do without")
        if not path.is_file() or _sum_of(path) != expected:
            what = "does not have the checksum" if path.is_file() else "is missing and stands"
            raise ValueError(
                f"{path}: {what} in {listed.name}: damaged, or changed later. If you changed it, remove the list"
            )


def sums_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.sha256")


def _sum_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """What was written to a file is on the disk, and outlives a power cut."""
    if path.is_file():
        with open(path, "r+b") as file:
            os.fsync(file.fileno())


def write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    if os.name == "posix":  # Windows has no handle on a folder to sync
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# One process a folder


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Inside, no other process can be alone in this folder. ValueError, naming it, if one is already.

    FOLDER/lock is held, and not just there: the system lets go of it with the process, after kill -9 too, so that it never
    has to be removed by hand. A process number alone would lie as soon as it is given to another process.
    """
    with naming(folder):
        path, was_there = folder / "lock", folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            file = open(path, "a+", encoding="utf-8")
            if not _held(file):
                file.seek(0)
                who = file.read().strip() or "another process"
                file.close()
                raise ValueError(f"{folder}: {who} is at work here. Wait for it, stop it, or choose another --out")
            try:
                if os.name != "posix" or os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    break
            except FileNotFoundError:
                pass
            file.close()  # the one that held it has just removed it: this is the lock of a name that is gone
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # while it is held; Windows, which cannot, leaves a file that nobody holds
        file.close()
        if not was_there:
            with contextlib.suppress(OSError):
                folder.rmdir()  # only if it is empty: a mistyped command leaves no folder behind


def _held(file) -> bool:
    """Whether this process could take the lock."""
    try:
        if os.name == "posix":
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            file.seek(1 << 20)  # Windows hides locked bytes from readers: one that nobody reads
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        warnings.warn(
            f"{file.name}: this file system has no locks, so a second run here would go unnoticed", stacklevel=2
        )
    return True
