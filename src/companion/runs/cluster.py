"""The Dask cluster of a sweep: one that exists, or one on this machine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from companion.runs import local
from companion.runs.executor import THREADS
from companion.runs.store import SweepError
from companion.runs.tls import security

CONNECT_S = 10  # to find a scheduler, and a worker on it


def check_tls(scheduler: str, tls: Sequence[str | os.PathLike]) -> None:
    """Raise ValueError, naming the option, for TLS files that cannot be used."""
    import ssl

    if not any(tls):
        return
    options = ("--tls-ca", "--tls-cert", "--tls-key")
    missing = [option for option, file in zip(options, tls, strict=True) if not file]
    if missing:
        raise ValueError(f"{', '.join(missing)}: missing; TLS takes {', '.join(options)}")
    if not scheduler.startswith("tls://"):
        address = scheduler.rpartition("://")[2] or "HOST:8786"
        raise ValueError(
            f"--scheduler {scheduler!r}: with {', '.join(options)} expected an address that "
            f"begins with tls://, such as tls://{address}"
        )
    for option, file in zip(options, tls, strict=True):
        try:
            with open(file, "rb"):
                pass
        except (OSError, ValueError) as error:  # ValueError: no name of a file
            what = getattr(error, "strerror", None) or error
            raise ValueError(f"{option} {file}: {what}") from error
    ca, cert, key = (os.fspath(file) for file in tls)
    try:
        context = ssl.create_default_context(cafile=ca)
    except (ssl.SSLError, ValueError) as error:
        raise ValueError(f"--tls-ca {ca}: no certificates in PEM format ({error})") from error
    try:
        context.load_cert_chain(cert, key, password=lambda: b"")
    except (ssl.SSLError, ValueError) as error:
        raise ValueError(
            f"--tls-cert {cert}, --tls-key {key}: expected a certificate and its key, in PEM "
            f"format and without a passphrase ({error})"
        ) from error


@contextlib.contextmanager
def connected(scheduler: str, tls, workers: int, threads: int, gpus: int | None):
    """A client of the scheduler at an address, or of a local cluster that ends with the sweep.

    With it, the workers of the local cluster, or None.
    """
    import gc
    import logging

    import dask
    from distributed import Client

    # a run that uses much memory is the user's wish; a dead worker is told once, by us
    dask.config.set({"distributed.worker.memory.terminate": False})
    dask.config.set({"distributed.scheduler.allowed-failures": 2})
    dask.config.set({"distributed.scheduler.worker-saturation": 1.0})
    for name in ("distributed", "distributed.nanny", "distributed.scheduler"):
        logging.getLogger(name).setLevel(logging.CRITICAL)

    # Dask's client stops its loop when it is collected, and waits for ever if that happens while
    # another one starts: those of earlier sweeps go now
    gc.collect()
    if not scheduler:
        with local.local_cluster(_environments(workers, threads, gpus)) as both:
            yield both
        return
    encrypted = security(*(os.fspath(file) for file in tls)) if any(tls) else None
    client = None
    try:
        client = local.patiently(
            Client, scheduler, timeout=CONNECT_S, set_as_default=False, security=encrypted
        )
        client.wait_for_workers(1, timeout=CONNECT_S)
    except (OSError, TimeoutError, ValueError, TypeError, RuntimeError) as error:
        if client:
            client.close(timeout=CONNECT_S)
        secure = scheduler.startswith("tls://")
        raise SweepError(
            f"--scheduler {scheduler}: no scheduler with a worker answered within "
            f"{CONNECT_S} s{', or it does not take our certificate' if secure else ''}; "
            "start one with `dask scheduler` and `dask worker`, or leave the "
            "option out for a local cluster"
        ) from error
    try:
        yield client, None
    finally:
        client.close(timeout=CONNECT_S)  # which also withdraws what is not done yet


def _environments(workers: int, threads: int, gpus: int | None) -> list[dict[str, str]]:
    """What each local worker's environment adds; with GPUs, each sees one."""
    names = local.gpus() if gpus is None else [str(number) for number in range(gpus)]
    workers = workers or len(names) or max(1, (os.cpu_count() or 1) // threads)
    common = dict.fromkeys(THREADS, str(threads))
    return [
        common | ({"CUDA_VISIBLE_DEVICES": names[number % len(names)]} if names else {})
        for number in range(workers)
    ]
