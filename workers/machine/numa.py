"""Chooses the NUMA node from which this process allocates memory.

The C library has no function for it, and libnuma is often not installed, so the system call is
made by its number.
"""

from __future__ import annotations

import ctypes
import errno
import os

MPOL_PREFERRED = 1  # linux/mempolicy.h
MAX_NODES = 1024
"""The largest number of nodes of any kernel (CONFIG_NODES_SHIFT is at most 10)."""

# set_mempolicy in asm/unistd_64.h, and in asm-generic/unistd.h for ARM.
_NUMBERS = {"x86_64": 238, "aarch64": 237}
_WORD = ctypes.sizeof(ctypes.c_ulong) * 8


def prefer_node(node: int) -> None:
    """Allocate new memory from this NUMA node first, and from other nodes when it is full.

    `node`: the kernel's number of the node, 0 or more.
    This applies to the calling thread, and to threads and processes that it starts afterwards.
    So it must be called before any library starts threads. Memory that is already allocated stays
    where it is.

    Raises OSError with the kernel's errno: EINVAL if the node does not exist or has no memory for
    this process, EPERM if a container forbids the call, ENOSYS if the system has no such call.
    """
    if not 0 <= node < MAX_NODES:
        raise _error(errno.EINVAL, node)
    mask = (ctypes.c_ulong * (node // _WORD + 1))()
    mask[node // _WORD] = 1 << node % _WORD
    # The kernel reads one bit less than it is told. It should not be told more than needed:
    # some kernels of 2021 and 2022 read past the end of a mask with more bits than nodes.
    bits = node + 1
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_ulong]
    call.restype = ctypes.c_long
    if call(_number(node), MPOL_PREFERRED, mask, bits + 1) != 0:
        raise _error(ctypes.get_errno(), node)


def _number(node: int) -> int:
    number = _NUMBERS.get(os.uname().machine)
    # A 32-bit program on a 64-bit kernel has other numbers, where 238 is tkill.
    if number is None or _WORD != 64:
        raise _error(errno.ENOSYS, node)
    return number


def _error(code: int, node: int) -> OSError:
    return OSError(code, f"cannot prefer memory of NUMA node {node}: {os.strerror(code)}")
