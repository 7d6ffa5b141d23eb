"""Owns how much of a machine untrusted code may take, and what a process can forbid itself. Both sides."""

from __future__ import annotations

import contextlib
import json
import os
import resource
from dataclasses import asdict, dataclass
from pathlib import Path

GIB = 1 << 30

# Calls that no kernel needs: into other processes, into the operating system, around the other limits
# (memory without a mapping, sockets that no namespace holds back).
FORBIDDEN = (
    "ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd",
    "bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register",
    "add_key", "request_key", "keyctl", "memfd_create", "memfd_secret",
    "mount", "umount2", "move_mount", "open_tree", "fsopen", "fsmount", "pivot_root", "chroot",
    "setns", "unshare", "open_by_handle_at", "name_to_handle_at",
    "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "reboot", "swapon",
    "swapoff", "syslog", "acct", "quotactl", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex",
)  # fmt: skip
FORBIDDEN_FAMILIES = (17, 29, 30, 31, 38, 40, 44)  # packet, CAN, TIPC, Bluetooth, crypto, vsock, XDP
EPERM = 1


@dataclass(frozen=True)
class Caps:
    """The most that a worker and all its processes may take."""

    memory_bytes: int  # host memory, of all processes together
    processes: int
    tasks: int  # threads of all processes
    file_bytes: int  # of one file, what is printed included
    folder_bytes: int  # of the folder in memory
    open_files: int

    @classmethod
    def of_this_machine(cls) -> Caps:
        """Half of the memory, 64 GiB at most; the rest is the same everywhere."""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return cls(
            memory_bytes=min(memory // 2, 64 * GIB),
            processes=256,
            tasks=512 + 32 * (os.cpu_count() or 1),  # libraries have pools of a thread for each core
            file_bytes=GIB // 4,
            folder_bytes=min(memory // 8, 2 * GIB),
            open_files=4096,
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Caps:
        return cls(**json.loads(text))


def confine(caps: Caps) -> None:
    """Forbid this process and all it starts what `caps` and FORBIDDEN say; nothing takes that back."""
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: caps.file_bytes,
        resource.RLIMIT_NOFILE: caps.open_files,
        resource.RLIMIT_NPROC: caps.tasks,
    }
    for which, most in limits.items():
        hard = resource.getrlimit(which)[1]
        value = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (value, value))
    with contextlib.suppress(OSError):  # who is short of memory takes it from here first
        Path("/proc/self/oom_score_adj").write_text("1000")
    filter_calls()


def can_filter() -> bool:
    """Whether system calls can be filtered: libseccomp and its bindings are there."""
    try:
        import pyseccomp
    except (ImportError, OSError, RuntimeError):
        return False
    return pyseccomp is not None


def filter_calls() -> bool:
    """Load the filter of system calls; False where that cannot be."""
    if not can_filter():
        return False
    import pyseccomp as seccomp

    rules = seccomp.SyscallFilter(seccomp.ALLOW)
    for name in FORBIDDEN:
        with contextlib.suppress(OSError):  # a call that this architecture does not have
            rules.add_rule(seccomp.ERRNO(EPERM), name)
    for family in FORBIDDEN_FAMILIES:
        rules.add_rule(seccomp.ERRNO(EPERM), "socket", seccomp.Arg(0, seccomp.EQ, family))
    rules.load()
    return True
