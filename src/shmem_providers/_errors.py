"""The exceptions, and which of them a code of the C core becomes."""

from __future__ import annotations

import errno
import io
import os
import sys

from shmem_providers._binding import lib


class ShMemError(Exception):
    """Mixed into every exception class of this package."""


class InvalidIdError(ShMemError, ValueError):
    """The id is garbage, or names something that is no shared memory."""


class SizeMismatchError(ShMemError, ValueError):
    """The segment is smaller than its description says."""


class ProviderUnavailableError(ShMemError, OSError):
    """The platform lacks the mechanism."""


class ServiceError(ShMemError, OSError):
    """No service answers, or it refused."""


_PLAIN: dict[int, type[Exception]] = {
    lib.SHMP_EINVAL: ValueError,
    lib.SHMP_EID: InvalidIdError,
    lib.SHMP_ESIZE: SizeMismatchError,
    lib.SHMP_EOVERFLOW: OverflowError,
    lib.SHMP_EUNSUPPORTED: io.UnsupportedOperation,
    lib.SHMP_ENOMEM: MemoryError,
}


def _text_of(os_error: int) -> str:
    if sys.platform == "win32":
        from ctypes import FormatError

        return FormatError(os_error).strip()
    return os.strerror(os_error)


def error_from(code: int, os_error: int, call: str, message: str) -> Exception:
    """Make the exception for a failure of the C core. Called by the binding.

    Args:
        code: ``-SHMP_E...``.
        os_error: errno or Windows' last error, for ``-SHMP_EOS``.
        call: the function or argument at fault.
        message: its value, and the remedy.

    """
    if -code in _PLAIN:
        return _PLAIN[-code](f"{call}: {message}")
    if -code == lib.SHMP_ENOENV:
        return KeyError(message)
    if -code == lib.SHMP_ENOTFOUND:
        os_error = errno.ENOENT  # and ERROR_FILE_NOT_FOUND
    if -code == lib.SHMP_EUNAVAILABLE:
        return ProviderUnavailableError(errno.ENOSYS, f"{call}: {message}")
    if -code == lib.SHMP_ESERVICE:
        return ServiceError(os_error or errno.ECONNREFUSED, f"{call}: {message}")
    # the fourth is winerror, of which Windows makes errno and the class; elsewhere it is nothing
    return OSError(os_error, f"{call}: {_text_of(os_error)}: {message}", None, os_error)
