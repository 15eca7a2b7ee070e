"""Weights whose numbers are drawn when they are needed: the ones that would be drawn at once.

A process that keeps a part of each weight never has all of them. While the model is built, what is
done to large tensors is noted, with the state of the generator, and nobody writes to their memory,
so that it is not taken; it is done when their turn has come to be divided. What is drawn is also
drawn while it is noted, into memory that is given back, so that the draws after it are the same.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.device import give_freed_memory_back
from bigmodel_cli.lazy import Module, Tensor, torch

LARGE = 1 << 20
"""Bytes from which on a tensor's numbers are not made at once."""


Load = Callable[[Module, Mapping[str, Tensor]], None]
"""Is given the model and what this process keeps of its weights."""


@dataclass(frozen=True)
class Deed:
    """What is done to a tensor, or to a view of its memory, in place."""

    function: Any
    size: Sequence[int]
    stride: Sequence[int]
    offset: int
    args: Sequence[Any]
    named: dict[str, Any]
    random: Tensor | None  # the state of the generator before it, where it draws

    def do(self, whole: Tensor) -> None:
        """Do it to a tensor of the whole memory."""
        if self.random is not None:
            torch.set_rng_state(self.random)
        view = whole.as_strided(self.size, self.stride, self.offset)
        self.function(view, *self.args, **self.named)


@dataclass(frozen=True)
class Due:
    """What is to be done to a tensor's memory, in order."""

    memory: Any  # a weak reference, which keeps the address from being another's
    dtype: torch.dtype
    deeds: list[Deed]

    @staticmethod
    def of(tensor: Tensor) -> Due:
        """Nothing, to a new tensor."""
        from torch.multiprocessing.reductions import StorageWeakRef

        return Due(StorageWeakRef(tensor.untyped_storage()), tensor.dtype, [])


class Later:
    """What is to be done to the large tensors that were made within `noting`."""

    def __init__(self, room: int) -> None:
        self.room = room  # bytes that all processes that divide the model have for it
        self.load: Load | None = None  # reads a checkpoint's weights, when they are divided
        self.due: dict[int, Due] = {}  # by the address of their memory
        # one for all: of one each, freed, the next large tensor would get memory that is taken
        self.scratch: Tensor | None = None

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Inside, large tensors are made, and changed in place by numbers alone, without memory.
        Where their numbers are read or changed otherwise they are made first.
        """
        from torch.utils._python_dispatch import TorchDispatchMode

        makers = {
            torch.ops.aten.empty.memory_format,
            torch.ops.aten.empty_like.default,
            torch.ops.aten.empty_strided.default,
            torch.ops.aten.new_empty.default,
        }
        later = self

        class Noting(TorchDispatchMode):
            """Sees each operation on tensors."""

            def __torch_dispatch__(
                self, function: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                named = kwargs or {}
                known = [x for x in _tensors((args, named)) if later._is_due(x)]
                if not known:
                    found = function(*args, **named)
                    if function in makers and found.is_cpu and found.nbytes >= LARGE:
                        later.due[_place(found)] = Due.of(found)
                    return found
                if _makes_view(function):
                    return function(*args, **named)
                if len(known) == 1 and later._can_wait(function, args, named):
                    later._note(args[0], function, args[1:], named)
                    return args[0]
                later.fill(known)
                return function(*args, **named)

        mode: Any = Noting
        with mode():
            yield
        self.scratch = None

    def _is_due(self, tensor: Tensor) -> bool:
        return bool(self.due) and _place(tensor) in self.due

    def _can_wait(self, function: Any, args: Sequence[Any], named: dict[str, Any]) -> bool:
        """Whether what is done to one tensor that is due, among these, can be done later."""
        first, *others = _tensors((args, named))
        return (
            function in _deeds()
            and first is args[0]
            and self._is_due(first)
            and self.due[_place(first)].dtype == first.dtype
            and not any(x.nbytes >= LARGE for x in others)
            and named.get("generator") is None
        )

    def _note(self, tensor: Tensor, function: Any, args: Any, named: dict[str, Any]) -> None:
        """Note a deed; the generator is afterwards as if it were done."""
        random, due = None, self.due[_place(tensor)]
        form = tuple(map(int, tensor.size())), tuple(map(int, tensor.stride()))
        if torch.Tag.nondeterministic_seeded in function.tags:
            random = torch.get_rng_state()
            function(self._like(tensor), *args, **named)
        if function in _fills() and tensor.nbytes == tensor.untyped_storage().nbytes():
            due.deeds.clear()  # nothing is left of what was done before
        kept = [x.clone() if isinstance(x, torch.Tensor) else x for x in args]
        due.deeds.append(Deed(function, *form, int(tensor.storage_offset()), kept, named, random))

    def _like(self, tensor: Tensor) -> Tensor:
        """A tensor that lies as this one does, of any content."""
        form = tensor.size(), tensor.stride()
        count = 1 + sum((size - 1) * stride for size, stride in zip(*form, strict=True))
        own = self.scratch
        if own is None or own.dtype != tensor.dtype or len(own) < count:
            least = 0 if own is None else 2 * len(own)
            own = self.scratch = torch.empty(max(count, least), dtype=tensor.dtype)
        return own.as_strided(*form)

    def fill(self, tensors: Iterable[Tensor]) -> None:
        """Make the numbers of these tensors, if they are due."""
        give_freed_memory_back()  # of those before these
        now = torch.get_rng_state()
        for tensor in tensors:
            due = self.due.pop(_place(tensor), None)
            with torch.no_grad():
                for deed in due.deeds if due is not None else ():
                    deed.do(tensor.detach())
        torch.set_rng_state(now)

    def whole(self, model: Module) -> None:
        """Make all numbers of the model now."""
        self.fill(model.parameters())
        if self.load is not None:
            self.load(model, dict(model.named_parameters()))
            self.load = None

    def forget(self, tensors: Iterable[Tensor]) -> None:
        """These tensors get other numbers."""
        for tensor in tensors:
            self.due.pop(_place(tensor), None)


def _tensors(given: Any) -> Iterator[Tensor]:
    """The tensors among arguments."""
    if isinstance(given, torch.Tensor):
        yield given
    elif isinstance(given, dict):
        yield from _tensors(tuple(given.values()))
    elif isinstance(given, list | tuple):
        for one in given:
            yield from _tensors(one)


def _makes_view(function: Any) -> bool:
    """Whether a function gives views, and changes nothing."""
    schema = function._schema
    return not schema.is_mutable and any(x.alias_info is not None for x in schema.returns)


@contextlib.contextmanager
def noting(later: Later | None) -> Iterator[None]:
    """Inside it is noted what is to be done later, if anything is."""
    with contextlib.nullcontext() if later is None else later.noting():
        yield


@functools.cache
def _fills() -> frozenset[Any]:
    """Functions that give a tensor new numbers, whatever it had."""
    aten = torch.ops.aten
    return frozenset(
        (aten.normal_.default, aten.uniform_.default, aten.zero_.default, aten.fill_.Scalar)
    )


@functools.cache
def _deeds() -> frozenset[Any]:
    """Functions that can be done later: they change their first argument number by number."""
    aten = torch.ops.aten
    return _fills() | {
        *(aten.mul_.Tensor, aten.mul_.Scalar, aten.div_.Tensor, aten.div_.Scalar),
        *(aten.add_.Tensor, aten.add_.Scalar, aten.sub_.Tensor, aten.copy_.default),
    }


def _place(tensor: Tensor) -> int:
    """The address of a tensor's memory."""
    return int(tensor.untyped_storage()._cdata)
