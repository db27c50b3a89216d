"""What a submission's process may not do. Called in that process, after torch is there and before the submission is.

    Linux, x86-64 and arm64   a system-call filter: no network, no new processes, no signal to any other process
    Linux, where user namespaces are permitted   besides: every file is read-only, save in a small scratch folder
    Linux, macOS              limits on memory (Linux only), CPU time and file size
    everywhere                Python's sockets are closed; the parent stops what runs too long

A guard against accidents and pranks, and no jail: the code can still read what the user who grades can read.
"""

import ctypes
import os
import platform
import socket
import struct
import sys
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None

SYSTEM_CALLS = {  # of each architecture: its number in the filter, what is denied, what depends on the first argument
    "x86_64": (
        0xC000003E,
        [29, 41, 57, 58, 101, 129, 155, 165, 166, 200, 272, 297, 298, 308, 310, 311, 321, 323, 424, 425, 434, 438, 319],
        {"clone": 56, "clone3": 435, "kill": 62, "tgkill": 234, "prlimit64": 302},
    ),
    "aarch64": (
        0xC00000B7,
        [194, 198, 117, 138, 41, 40, 39, 130, 97, 240, 241, 268, 270, 271, 280, 282, 424, 425, 434, 438, 279],
        {"clone": 220, "clone3": 435, "kill": 129, "tgkill": 131, "prlimit64": 261},
    ),
}
# denied, in this order: shmget, socket, (fork, vfork,) ptrace, rt_sigqueueinfo, pivot_root, mount, umount2, tkill, unshare,
# rt_tgsigqueueinfo, perf_event_open, setns, process_vm_readv and _writev, bpf, userfaultfd, pidfd_send_signal,
# io_uring_setup, pidfd_open, pidfd_getfd, memfd_create (memory that no limit counts)
CLONE_THREAD = 0x10000
NEW_USER, NEW_MOUNTS, NEW_NETWORK, NEW_IPC = 0x10000000, 0x20000, 0x40000000, 0x8000000


def confine(memory: int, cpu_seconds: int, file_size: int, scratch: str, namespaces: bool) -> dict[str, str]:
    """Limits this process. Returns what holds: {"network", "processes", "files", "memory"} in words."""
    held = {"network": "Python's sockets closed", "processes": "not limited", "memory": "not limited"}
    held["files"] = "starts in a scratch folder, other files not protected"
    linux = sys.platform == "linux"
    if linux and namespaces and _read_only_but(scratch):
        held["files"] = "read-only but for a scratch folder of 64 MB"
    os.chdir(scratch)
    _close_sockets()
    if resource:
        _limit(resource.RLIMIT_CPU, cpu_seconds)
        _limit(resource.RLIMIT_FSIZE, file_size)
        _limit(resource.RLIMIT_CORE, 0)
        # threads too; in a user namespace of its own they are counted anew, otherwise with all others of the user
        _limit(resource.RLIMIT_NPROC, 256 if "read-only" in held["files"] else 10_000)
    if linux:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + memory)
        held["memory"] = f"{memory / 1e9:.3g} GB"
        if _filter_system_calls():
            held |= {"network": "none (system calls denied)", "processes": "no new ones, no signals to others"}
    return held


def _limit(what: int, most: int) -> None:
    hard = resource.getrlimit(what)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, most))


def _close_sockets() -> None:
    """So that a library says at once why there is no network, instead of trying for a minute."""
    plain, unix = socket.socket, getattr(socket, "AF_UNIX", None)

    class Closed(plain):
        def __init__(self, family=-1, *args, **kwargs):
            if family != unix:
                raise OSError("no network while a submission is graded")
            super().__init__(family, *args, **kwargs)

    def nobody(*args, **kwargs):
        raise OSError("no network while a submission is graded")

    socket.socket, socket.getaddrinfo = Closed, nobody


def _filter_system_calls() -> bool:
    """A classic BPF program under prctl(PR_SET_SECCOMP): everything is allowed but what is listed."""
    if platform.machine() not in SYSTEM_CALLS:
        return False
    architecture, denied, known = SYSTEM_CALLS[platform.machine()]
    load, equal, some_bit, give = 0x20, 0x15, 0x45, 0x06
    allow, refuse, unknown = 0x7FFF0000, 0x50000 | 1, 0x50000 | 38  # EPERM, ENOSYS

    number, first_argument = (load, 0, 0, 0), (load, 0, 0, 16)
    program = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, refuse), number]
    if platform.machine() == "x86_64":  # the x32 numbers are the same calls once more
        program += [(0x35, 0, 1, 0x40000000), (give, 0, 0, refuse)]
    for call in denied:
        program += [(equal, 0, 1, call), (give, 0, 0, refuse)]
    program += [(equal, 0, 1, known["clone3"]), (give, 0, 0, unknown)]  # threads fall back on clone, whose flags show
    program += [(equal, 0, 4, known["clone"]), first_argument, (some_bit, 1, 0, CLONE_THREAD)]
    program += [(give, 0, 0, refuse), (give, 0, 0, allow)]
    for name, allowed in [("kill", os.getpid()), ("tgkill", os.getpid()), ("prlimit64", 0)]:  # itself it may
        program += [(equal, 0, 4, known[name]), first_argument, (equal, 1, 0, allowed)]
        program += [(give, 0, 0, refuse), (give, 0, 0, allow)]
    program += [(give, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges = libc.prctl(38, 1, 0, 0, 0) == 0
    return no_new_privileges and libc.prctl(22, 2, ctypes.c_void_p(ctypes.addressof(header)), 0, 0) == 0


def _read_only_but(scratch: str) -> bool:
    """Namespaces of its own for users, mounts, network and IPC, in which every mount is read-only; then no privileges."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    try:
        if libc.unshare(NEW_USER | NEW_MOUNTS | NEW_NETWORK | NEW_IPC) != 0:
            return False
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
        private, no_suid_no_dev = 0x44000, 6
        attributes = ctypes.create_string_buffer(struct.pack("QQQQ", 1, 0, 0, 0))  # set MOUNT_ATTR_RDONLY
        mount_setattr, here, recursive = 442, -100, 0x8000
        sound = libc.mount(None, b"/", None, private, None) == 0
        sound &= libc.syscall(mount_setattr, here, b"/", recursive, attributes, 32) == 0
        sound &= libc.mount(b"tmpfs", scratch.encode(), b"tmpfs", no_suid_no_dev, b"size=64m") == 0
    except OSError:
        return False
    version = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0))
    return libc.capset(version, ctypes.create_string_buffer(24)) == 0 and sound
