"""Several processes that train one model: who is there, and what they tell one another.

The only importer of torch.distributed. Without `torchrun` there is one process, the world has size
1, and nothing here imports it, waits or copies. What is exchanged is tensors and JSON, never
pickles.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from typing import Any

from bigmodel_cli.distributed.lines import connected
from bigmodel_cli.distributed.neighbours import Neighbours, forget_groups
from bigmodel_cli.distributed.peers import Peers
from bigmodel_cli.distributed.tensors import (
    Sum,
    gathered,
    gathered_bytes,
    in_buckets,
    most,
    most_and_gathered,
    sum_,
)
from bigmodel_cli.distributed.who import (
    ALONE,
    World,
    announced,
    known,
    neighbours,
    samples,
    share_samples,
    world,
)
from bigmodel_cli.errors import ProcessError, ResourceError, SpecError
from bigmodel_cli.lazy import torch

__all__ = [
    "ALONE",
    "Neighbours",
    "Sum",
    "World",
    "announced",
    "begin",
    "described",
    "device_of",
    "end",
    "first_alone",
    "gathered",
    "gathered_bytes",
    "gathered_values",
    "in_buckets",
    "meet",
    "most",
    "most_and_gathered",
    "neighbours",
    "nothing_to_save",
    "peers",
    "samples",
    "share_samples",
    "sum_",
    "told",
    "wait_for_all",
    "words_again",
    "world",
]
_peers: list[Peers] = []
_store: list[Any] = []  # torch's, where the processes find one another
MEETING = 300.0
"""Seconds in which all processes must have come."""
LISTENING = "BIGMODEL_LISTENING"
"""The descriptor of the socket at MASTER_PORT, for the first process that `--processes` starts."""
MET = "BIGMODEL_MET"
"""The descriptor into which that one writes when it has found the others."""


def meet(seconds: float) -> Peers | None:
    """Find the other processes, and hold lines to them; None where there are none.

    A process that gives no sign of life for so many seconds is taken for dead. Raises
    `ProcessError`.
    """
    found = announced()
    if found == ALONE:
        return None
    if not _peers:
        from torch._C._distributed_c10d import PrefixStore

        _store[:] = [_found_store(found)]
        try:
            lines, meeting = connected(
                found.rank,
                found.size,
                _store[0].set,
                lambda name: bytes(_store[0].get(name)).decode(),
                MEETING,
            )
        except RuntimeError as error:
            raise _not_met(error) from None
        # torchrun keeps its store over a restart, with what is no longer true
        _store[:] = [PrefixStore(f"tensors {meeting}", _store[0])]
        _peers.append(Peers(found.rank, found.size, lines, seconds))
        _say_met()
    return _peers[0]


def _say_met() -> None:
    """Tell the launcher that from here on each process knows of the others' end."""
    descriptor = os.environ.pop(MET, None)
    if descriptor is not None:
        with contextlib.suppress(OSError):
            os.write(int(descriptor), b"1")
        os.close(int(descriptor))


def device_of(wanted: str) -> str:
    """The device of this process, where `wanted` is asked for: each has a GPU of its own, or its
    share of the CPU's cores.

    Raises `SpecError` for a device that they would have to share, and `ResourceError` where a
    machine has too few GPUs.
    """
    found = announced()
    if found.alone:
        return wanted
    kind, _, number = wanted.partition(":")
    if number or kind == "mps":
        raise SpecError(
            f"--device {wanted}: {found.size} processes cannot share it; cuda gives each process a"
            " GPU of its own, and cpu its share of the cores"
        )
    if kind in ("auto", "cuda") and torch.cuda.is_available():
        if found.local >= (count := torch.cuda.device_count()):
            raise ResourceError(
                f"--device {wanted}: this machine has {count} CUDA devices, fewer than its"
                " processes; start fewer, or use --device cpu"
            )
        torch.cuda.set_device(found.local)
    elif not _threads_given():
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, _cores() // max(1, local)))
    return wanted


def _threads_given() -> bool:
    """Whether the user set OMP_NUM_THREADS: torchrun sets it to 1 where nobody did."""
    if "OMP_NUM_THREADS" not in os.environ:
        return False
    try:
        with open(f"/proc/{os.getppid()}/environ", "rb") as file:  # as torchrun was started
            return any(line.startswith(b"OMP_NUM_THREADS=") for line in file.read().split(b"\0"))
    except OSError:
        return True


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


def peers() -> Peers | None:
    """The lines to the other processes, as of `meet`."""
    return _peers[0] if _peers else None


def _found_store(found: World) -> Any:
    """torch's store of keys and values. Raises `ProcessError`."""
    from torch._C._distributed_c10d import TCPStore
    from torch.distributed.rendezvous import rendezvous

    patience = datetime.timedelta(seconds=MEETING)
    try:
        listening = os.environ.get(LISTENING)
        if "TORCHELASTIC_RUN_ID" not in os.environ or listening is not None:
            return TCPStore(
                os.environ["MASTER_ADDR"],
                int(os.environ["MASTER_PORT"]),
                found.size,
                found.first,
                patience,
                wait_for_workers=False,
                master_listen_fd=None if listening is None else int(listening),
            )
        return next(rendezvous("env://", timeout=patience))[0]
    except (RuntimeError, ValueError, KeyError) as error:
        raise _not_met(error) from None


def _not_met(error: Exception) -> ProcessError:
    line = str(error).strip().splitlines()[0][:300]
    return ProcessError(
        f"the processes did not find one another (MASTER_ADDR, MASTER_PORT): {line}"
    )


def begin(device: torch.device, seconds: float) -> World:
    """Connect to the others for tensors: over gloo on CPUs, over NCCL on GPUs.

    A wait for another process's tensors ends after that many seconds, with an error.
    """
    found = announced()
    if found != ALONE and world() == ALONE:
        import torch.distributed as dist

        lines = meet(seconds)
        assert lines is not None
        lines.limit = seconds
        dist.init_process_group(
            # numbers of the host are told over gloo, so that nobody waits for a GPU
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=_store[0],
            rank=found.rank,
            world_size=found.size,
            timeout=datetime.timedelta(seconds=seconds),
        )
    known(found)
    return found


def described(device: torch.device) -> str:
    """How many processes there are, for people."""
    how = "NCCL, each on a GPU" if device.type == "cuda" else "gloo, each on its share of the cores"
    return f"{world().size} processes, which exchange tensors over {how}"


def end() -> None:
    """Part from the others."""
    if not world().alone:
        import torch.distributed as dist

        dist.destroy_process_group()
    known(ALONE)
    forget_groups()
    if _peers:
        _peers.pop().close()
        _store.clear()


def told(value: Any) -> Any:
    """The first process's value, which JSON can hold, in all processes."""
    found = peers()
    return value if found is None else found.told(value)


def gathered_values(value: Any) -> list[Any]:
    """The value of each process, which JSON can hold, by rank, in all of them."""
    found = peers()
    return [value] if found is None else found.gathered(value)


def wait_for_all() -> None:
    """Return when every process has come here; as long as that takes, while they live."""
    gathered_values(None)


def words_again() -> list[str]:
    """Options of a command that starts as many processes again on one machine."""
    found = announced()
    one_machine = os.environ.get("LOCAL_WORLD_SIZE") == str(found.size)
    return ["--processes", str(found.size)] if one_machine and not found.alone else []


def nothing_to_save(so: bool) -> None:
    """Whether a signal that stops the run loses nothing, so that it need not wait for a step."""
    found = peers()
    if found is not None:
        found.nothing_to_save = so


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
    """The enclosed code runs in the first process, then in all others: they find what it made, such
    as a cache.
    """
    found = peers()
    if found is not None and not found.first:
        found.gathered(None)
    yield
    if found is not None and found.first:
        found.gathered(None)
