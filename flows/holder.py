"""The name under which a process holds a lease, from which others on the same machine can tell that it is gone."""

from __future__ import annotations

import os
import socket
import uuid
from contextlib import suppress
from pathlib import Path


def myself() -> str:
    """Host, pid, and what tells this process from all that bear the same pid; distinct at every call."""
    return f"{socket.gethostname()}:{os.getpid()}:{_room()}:{_born(os.getpid())}:{uuid.uuid4().hex[:8]}"


def is_gone(holder: str) -> bool:
    """Whether the holder was a process of this machine that has ended. What lives elsewhere cannot be seen from here
    and is not called gone: its lease ends by the clock."""
    _, pid, room, born, _ = (holder.rsplit(":", 4) + [""] * 5)[:5]
    return bool(room) and room == _room() and _born(int(pid)) != born and not _is_hidden(int(pid))


def _room() -> str:
    """Where a pid means something: this boot of this machine, this container. Empty where /proc does not say."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        return f"{boot[:8]}-{os.stat('/proc/self/ns/pid').st_ino}"
    return ""


def _born(pid: int) -> str:
    """When it started, in ticks since the boot, which no change of the clock moves; empty for one that has ended."""
    with suppress(OSError):
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # proc(5): fields 3 and on
        return "" if state == "Z" else fields[18]
    return ""


def _is_hidden(pid: int) -> bool:
    """Whether it lives and /proc does not show it: another user's, where /proc is mounted with hidepid."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return not Path(f"/proc/{pid}").exists()
    except ProcessLookupError:
        return False
    return False
