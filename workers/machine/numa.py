"""Which NUMA node this process takes its memory from.

The C library has no function for it, and libnuma is not everywhere, so the system call is made
by its number.
"""

from __future__ import annotations

import ctypes
import errno
import os

MPOL_PREFERRED = 1  # linux/mempolicy.h
MAX_NODES = 1024
"""No kernel can be built for more nodes (CONFIG_NODES_SHIFT is at most 10)."""

# set_mempolicy in asm/unistd_64.h, and in asm-generic/unistd.h, which ARM uses.
_NUMBERS = {"x86_64": 238, "aarch64": 237}
_WORD = ctypes.sizeof(ctypes.c_ulong) * 8


def prefer_node(node: int) -> None:
    """Take new memory from this NUMA node first, and from others when it is full.

    `node`: as the kernel numbers them, 0 or more.
    It applies to the calling thread and to threads and processes that it starts afterwards, so
    it must be called before any library starts threads. Memory that is already there stays.
    Raises OSError with the kernel's errno: EINVAL when there is no such node or it has no memory
    for us, EPERM where a container forbids the call, ENOSYS where there is none.
    """
    if not 0 <= node < MAX_NODES:
        raise _error(errno.EINVAL, node)
    mask = (ctypes.c_ulong * (node // _WORD + 1))()
    mask[node // _WORD] = 1 << node % _WORD
    # The kernel looks at one bit less than it is told. Not at more than it must, either: some
    # kernels of 2021 and 2022 read past the end of a mask with more bits than they have nodes.
    bits = node + 1
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_ulong]
    call.restype = ctypes.c_long
    if call(_number(node), MPOL_PREFERRED, mask, bits + 1) != 0:
        raise _error(ctypes.get_errno(), node)


def _number(node: int) -> int:
    number = _NUMBERS.get(os.uname().machine)
    # A 32-bit program on a 64-bit kernel has other numbers: 238 would be tkill.
    if number is None or _WORD != 64:
        raise _error(errno.ENOSYS, node)
    return number


def _error(code: int, node: int) -> OSError:
    return OSError(code, f"cannot prefer memory of NUMA node {node}: {os.strerror(code)}")
