"""Whether we are root in, the user that PostgreSQL runs as and a folder it can enter out."""

from __future__ import annotations

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import LocalStackError

__all__ = ["Account", "enterable", "root_folder", "server_account"]

# The first that exists. Both are there for such a purpose and own nothing else that matters here.
CANDIDATES = ("postgres", "nobody")
FOLDERS = (Path("/var/lib"), Path("/var/tmp"))  # noqa: S108  # see root_folder: never used when another user made it


@dataclass(frozen=True, slots=True)
class Account:
    """A user other than root."""

    name: str
    uid: int
    gid: int


def server_account() -> Account | None:
    """Return the user for PostgreSQL, or None when it can run as ourselves (not root)."""
    if os.geteuid() != 0:
        return None
    for name in CANDIDATES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return Account(name, entry.pw_uid, entry.pw_gid)
    raise LocalStackError(
        f"PostgreSQL does not run as root, and there is no user {' or '.join(CANDIDATES)}",
        remedy="run it as an ordinary user, or add such a user: useradd --system postgres",
    )


def enterable(path: Path, account: Account) -> bool:
    """Whether this user can reach ``path`` and read (a folder: enter) it, judged by the modes."""
    parts = [path, *path.parents]
    return all(_allows(part, account, stat.S_IXOTH) for part in parts)


def root_folder() -> Path:
    """Return a folder that belongs to root and that everybody can enter."""
    for parent in FOLDERS:
        folder = parent / "outbox-pipeline"
        try:
            folder.mkdir(mode=0o755, exist_ok=True)
            found = folder.lstat()
        except OSError:
            continue
        if stat.S_ISDIR(found.st_mode) and found.st_uid == 0 and not found.st_mode & 0o022:
            folder.chmod(0o755)
            return folder
    raise LocalStackError(
        f"no folder for PostgreSQL's user can be made in {' or '.join(map(str, FOLDERS))}",
        remedy="run it as an ordinary user, or from a folder that others can enter",
    )


def _allows(path: Path, account: Account, bit: int) -> bool:
    try:
        found = path.stat()
    except OSError:
        return False
    if found.st_uid == account.uid:
        return bool(found.st_mode & bit << 6)
    if found.st_gid == account.gid:
        return bool(found.st_mode & bit << 3)
    return bool(found.st_mode & bit)
