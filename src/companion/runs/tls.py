"""TLS between a sweep's processes, and a fault of Python that would cut its connections.

Python reads the outcome of a read or write from OpenSSL's queue of errors without clearing it
before (python/cpython, issue 148594). Since OpenSSL 3.4 a peer that has gone leaves an error
there, and the next healthy connection of the thread fails with it: a sweep loses its scheduler.
`security` mends this for the process that calls it; a scheduler and workers that Dask's own
commands start take ``--preload companion.runs.tls``.
"""

from __future__ import annotations

import ctypes
import functools
import ssl
import subprocess
import warnings


def security(ca: str, cert: str, key: str):
    """Dask's Security for all roles, encryption required, of paths or of PEM texts."""
    from distributed import Security

    clear_errors_first()
    roles = ("client", "scheduler", "worker")
    return Security(
        require_encryption=True,
        tls_ca_file=ca,
        **{f"tls_{role}_cert": cert for role in roles},
        **{f"tls_{role}_key": key for role in roles},
    )


def certificate() -> dict[str, str]:
    """A key and a certificate signed by itself, as PEM; empty where there is no openssl."""
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj /CN=companion-sweep "
        "-keyout /dev/stdout -out /dev/stdout"
    )
    try:
        made = subprocess.run(command.split(), capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    key, mark, rest = made.stdout.partition("-----BEGIN CERTIFICATE-----")
    if made.returncode or not mark or "PRIVATE KEY" not in key:
        return {}
    return {"key": key, "cert": mark + rest}


def openssl() -> ctypes.PyDLL:
    """The OpenSSL of this Python's `ssl`."""
    import _ssl

    return ctypes.PyDLL(getattr(_ssl, "__file__", None))


@functools.cache
def clear_errors_first() -> None:
    """Let this process's TLS connections forget the errors of others before each call."""
    try:
        clear = openssl().ERR_clear_error
    except (OSError, AttributeError, TypeError):  # linked into Python and hidden, or Windows
        if ssl.OPENSSL_VERSION_INFO >= (3, 4):
            warnings.warn(
                "TLS: this Python's OpenSSL cannot be told to clear its errors, so the sweep's "
                "connections may break (python/cpython, issue 148594)",
                stacklevel=2,
            )
        return

    def after(plain):
        @functools.wraps(plain)
        def call(*args, **options):
            clear()
            return plain(*args, **options)

        return call

    for name in ("do_handshake", "read", "send"):
        setattr(ssl.SSLSocket, name, after(getattr(ssl.SSLSocket, name)))


def dask_setup(_: object) -> None:
    """What Dask calls of a preloaded module."""
    clear_errors_first()
