"""Memory that a decoder fills, and that Python then knows as `bytes`."""

from __future__ import annotations

import ctypes

# The resizer takes nothing but `bytes`: decoding into one that nobody has seen yet saves a copy of the picture, 3 % of
# the time of the whole. This is what the C interface is documented to allow.
_uninitialised_bytes = ctypes.pythonapi["PyBytes_FromStringAndSize"]
_uninitialised_bytes.restype = ctypes.py_object
_uninitialised_bytes.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t]
_address_of_bytes = ctypes.pythonapi["PyBytes_AsString"]
_address_of_bytes.restype = ctypes.c_void_p
_address_of_bytes.argtypes = [ctypes.py_object]


def unseen_bytes(length: int) -> tuple[bytes, int]:
    """Bytes of this length (above 1) and where they are; to be filled before anyone else sees them."""
    unseen = _uninitialised_bytes(None, length)
    return unseen, address_of(unseen)


def address_of(data: bytes) -> int:
    """Where they are, as long as they live."""
    return _address_of_bytes(data)
