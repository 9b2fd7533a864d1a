"""Arrays that end, or begin, next to a page that the process may not touch."""

import ctypes
import functools
import mmap

import numpy as np

PAGE = mmap.PAGESIZE


@functools.cache
def libc():
    return ctypes.CDLL(None, use_errno=True)


def fence(address):
    """Take all permissions from the page at `address`."""
    if libc().mprotect(ctypes.c_void_p(address), ctypes.c_size_t(PAGE), 0) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")


def fenced(array, at_end):
    """A copy whose last (or first) byte is next to a forbidden page."""
    body = -(-max(array.nbytes, 1) // PAGE) * PAGE
    memory = mmap.mmap(-1, body + 2 * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    offset = PAGE + (body - array.nbytes if at_end else 0)
    copy = np.frombuffer(memory, np.uint8, array.nbytes, offset).view(array.dtype)
    copy = copy.reshape(array.shape)
    copy[...] = array
    fence(start)
    fence(start + PAGE + body)
    return copy
