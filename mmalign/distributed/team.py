"""The processes of a run: each computes some of the rows, and all of them know what is said of all rows.

What processes tell each other are tables (as safetensors) and JSON; nothing is pickled. Every message says whether its sender has failed,
so that a process that stops is heard wherever the others wait, and all of them stop with its words instead of waiting for it.
"""

from __future__ import annotations

import atexit
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import cache
from queue import Empty, Queue
from threading import Thread
from typing import Any
from weakref import WeakMethod

import torch
from torch import Tensor

from mmalign.distributed.messages import FAILED, SHORT, WELL, Begun, Head, alike, apart, first_asked
from mmalign.stacking import stacked
from mmalign.types import UserError

TIMEOUT = 1800.0
"""Seconds that a process waits for the others, unless ``MMALIGN_TIMEOUT`` says otherwise."""

LOOK = 5.0
"""Seconds that a process looks for which of the others has not come."""


class PeerError(UserError):
    """Another process of the run has failed, or is gone."""


class PeerShort(Exception):
    """Another process of the run had no memory for what all of them were doing, and waits for them to do it again in smaller parts."""


class Team:
    """The processes of a run. This one is alone; ``Processes`` are several.

    size: how many there are to share rows. rank: the number of this one, from 0. Where several compute each row together
    (``compute_together``), these are one of them: they have its rows, make its calls, and hear what the first of them says. Errors, of all
    that is told and gathered: PeerError where another process has failed, died, or not come within the timeout.
    """

    size, rank = 1, 0
    count, place = 1, 0
    """``size`` and ``rank`` where those that compute rows together are counted, too."""
    alone, main = True, True
    """Whether there is no other process, and whether this is the one that writes."""
    asks = True
    """Whether this process asks rewards about its rows: of those that compute rows together the first one does."""
    failed = False
    """Whether this process and the others hear nothing of each other any more."""
    begun: Begun | None = None
    """A gather that runs while this process computes. It is dropped where one of them asks for something else first."""

    def compute_together(self, count: int, key: str = "sequence") -> None:
        """From now on so many processes compute each row. key: of ``devices``. Errors: UserError where there are no such groups."""
        if count > 1:
            takes = f"takes as many processes, or a multiple (--processes {count}), or 1"
            raise UserError(f"devices.{key}: got {count} in one process; {takes}")

    def share(self, count: int) -> slice:
        """Which of ``count`` things are this process's: as many as every other one's, or one more; those of rank 0 come first."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def tell(self, value: Any) -> list[Any]:
        """JSON of every process, in the order of ranks."""
        return [value]

    def everyone(self, value: Any) -> list[Any]:
        """``tell``, also of those that compute rows together."""
        return [value]

    def gather(self, tables: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Named tensors of every process, in the order of ranks, on the CPU; those of this process are its own, with their graph."""
        return [dict(tables)]

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Makes each the sum of all processes', in place; every process gives as many, of the same shapes."""

    def copy(self, tensors: Iterable[Tensor]) -> None:
        """Makes each what it is in the main process, in place."""

    def fail(self, error: BaseException) -> PeerError | None:
        """Says to the others that this process stops, and why. Does not raise.

        Returns which of them is gone, where one is: what torch itself was waiting for then fails as well, with words of its own.
        """
        return None

    def heard(self, act: Callable[[], Any]) -> None:
        """Does what takes all processes."""
        act()

    def short(self) -> None:
        """Says to the others that this process had no memory; each hears it as PeerShort, wherever it waits for what all of them tell."""

    @contextmanager
    def watched(self, part: Callable[[str], AbstractContextManager[None]]) -> Iterator[None]:
        """Inside of the block, what it takes to hear of the others is ``part("gather")``."""
        yield

    def enlist(self, helper: Callable[[int, int], None]) -> int:
        """The number of one more block that all processes have cut (``shards``). helper: a method, which takes part in a gather of it for
        another process, by its number and that of its values; it is not kept alive for that."""
        return 0

    def ask(self, block: int, values: int, then: int = -1) -> bool:
        """Returns once all processes gather this block with these values, or have; those that need another one, or none, help.

        Returns whether all of them are to begin to gather block ``then`` (-1: none), too, with the same values (``begun``).
        """
        return False

    def let_go(self) -> None:
        """Drops the gather that has begun: its values may be others now."""

    # Of these alone

    def rows(self, name: str, table: Tensor) -> Tensor:
        """The rows ``[B, ...]`` of all processes; tables ``[B, T]`` of several widths are filled up on the right."""
        parts = [part[name] for part in self.gather({name: table})]
        return torch.cat(parts) if table.ndim == 1 else stacked(parts)

    def any(self, flag: bool) -> bool:
        """Whether it is so in some process."""
        return any(self.everyone(bool(flag)))

    def agree(self, what: str, value: Any) -> None:
        """Errors: UserError in every process where ``value``, which is JSON, is not the same in all of them; names the key that is not."""
        values = self.everyone(value)
        for rank, other in enumerate(values):
            if (key := apart(values[0], other)) is not None:
                which = f"{what}{key}: process {rank} has another than process 0"
                raise UserError(f"{which}; takes the same files and arguments in all of them")


class Processes(Team):
    """Several processes, which a launcher has started: ``torchrun``, ``accelerate launch``, ``mmalign train --processes``."""

    def __init__(self, rank: int, size: int, timeout: float = TIMEOUT):
        import torch.distributed as dist

        self.rank, self.size, self.timeout, self.failed = rank, size, timedelta(seconds=timeout), False
        self.place, self.count, self.each, self.alone, self.main = rank, size, 1, size == 1, rank == 0
        self._board: Any = None  # where each says which of its messages it has come to
        self._messages = 0
        self._helpers: list[WeakMethod[Callable[[int, int], None]]] = []
        self._part: Callable[[str], AbstractContextManager[Any]] = nullcontext
        if torch.cuda.is_available():
            own, there = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
            if (most := max(int(os.environ.get("LOCAL_WORLD_SIZE", 0)), own + 1)) > there:
                raise UserError(f"processes: {most} of this machine, which has {there} GPUs; takes at most one for each")
            torch.cuda.set_device(own)
        try:
            if not dist.is_initialized():
                backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
                self._board = self._store()
                dist.init_process_group(backend, timeout=self.timeout, store=self._board, rank=rank, world_size=size)
            self._talk = dist.new_group(backend="gloo", timeout=self.timeout)
        except (RuntimeError, ValueError) as error:
            why = " ".join(str(error).split())[:200]
            takes = "a launcher such as torchrun, with an address and a port that all of them reach"
            raise UserError(f"processes: could not be joined ({why}); takes {takes}") from error
        self.tell("here")  # whoever ends first may take the store along that the others still join by
        atexit.register(self._leave)

    def _leave(self) -> None:
        """Ends torch's threads before Python ends, as torch asks for: one was seen to end a process by SIGABRT instead.
        After a failure NCCL is left alone: it could wait for those who are gone."""
        import torch.distributed as dist

        if dist.is_initialized() and not (self.failed and torch.cuda.is_available()):
            dist.destroy_process_group()

    def compute_together(self, count: int, key: str = "sequence") -> None:
        if self.count % count:
            raise UserError(f"devices.{key}: got {count} and {self.count} processes; takes a number that divides these, or 1")
        self.each, self.size, self.rank = count, self.count // count, self.place // count
        self.asks = self.place % count == 0

    def _store(self) -> Any:
        """Where the processes find each other. Errors: RuntimeError where they do not within the timeout: whoever else holds that port may
        be silent, and is waited for without end by torch itself."""
        from torch.distributed import rendezvous

        stores: Queue[Any] = Queue()

        def find() -> None:
            try:
                stores.put(next(iter(rendezvous("env://", timeout=self.timeout)))[0])
            except (RuntimeError, ValueError) as error:
                stores.put(error)

        Thread(target=find, daemon=True).start()
        try:
            store = stores.get(timeout=self.timeout.total_seconds() + 1)
        except Empty:
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise RuntimeError(f"no answer from {where} in {self.timeout.total_seconds():.0f} seconds") from None
        if isinstance(store, Exception):
            raise store
        return store

    def tell(self, value: Any) -> list[Any]:
        return self.everyone(value)[:: self.each]

    def everyone(self, value: Any) -> list[Any]:
        return [json.loads(text) for text in self._exchange(json.dumps(value).encode())]

    def gather(self, tables: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        from safetensors.torch import load, save

        sent = {name: table.detach().cpu().contiguous().clone() for name, table in tables.items()}
        parts = [load(text) for text in self._exchange(save(sent))][:: self.each]
        first = self.each * self.rank == self.place or any(table.requires_grad for table in tables.values())
        parts[self.rank] = dict(tables) if first else parts[self.rank]  # rewards may answer each who asks otherwise
        return parts

    def add(self, tensors: Iterable[Tensor]) -> None:
        from torch.distributed import all_reduce

        self._in_buckets(list(tensors), all_reduce)

    def copy(self, tensors: Iterable[Tensor]) -> None:
        from torch.distributed import broadcast

        self._in_buckets(list(tensors), lambda flat: broadcast(flat, src=0))

    def _in_buckets(self, tensors: Sequence[Tensor], act: Any) -> None:
        """An act upon tensors, those of a kind put together: one message for each, and not for each tensor."""
        kinds = dict.fromkeys((tensor.dtype, tensor.device) for tensor in tensors)
        for dtype, device in kinds:
            held = [tensor for tensor in tensors if (tensor.dtype, tensor.device) == (dtype, device)]
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in held])
            self.tell(len(flat))  # whoever has failed, or had no memory for it, says so here
            self.heard(lambda: act(flat))  # noqa: B023 (done at once)
            for tensor, part in zip(held, flat.split([tensor.numel() for tensor in held]), strict=True):
                tensor.detach().copy_(part.view_as(tensor))

    def fail(self, error: BaseException) -> PeerError | None:
        if self.failed or isinstance(error, PeerError):
            return None
        self.failed = True
        what = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {' '.join(str(error).split())}"
        try:
            self._exchange(what.encode(), how=FAILED)
        except PeerError as lost:
            return lost
        return None

    def short(self) -> None:
        self._exchange(b"", how=SHORT)

    def enlist(self, helper: Callable[[int, int], None]) -> int:
        self._helpers.append(WeakMethod(helper))
        return len(self._helpers) - 1

    def ask(self, block: int, values: int, then: int = -1) -> bool:
        if self.begun is not None and self.begun[:2] != (block, values):
            self.let_go()
        while True:
            heads = self._heads(Head(WELL, 0, block, values, then, int(self.begun is not None)))
            if any(head.how != WELL for head in heads):
                self._bodies(b"", heads)  # raises
            if alike(heads):
                self.begun = None
                return then >= 0
            self.let_go()
            gather = first_asked(heads)
            if gather == (block, values):
                return False
            self._help(gather)

    def let_go(self) -> None:
        begun, self.begun = self.begun, None
        if begun is not None:
            self.heard(begun.drop)

    def _help(self, gather: tuple[int, int] | None) -> None:
        helper = None if gather is None else self._helpers[gather[0]]()
        if helper is not None and gather is not None:
            helper(*gather)

    def _exchange(self, message: bytes, *, how: int = WELL) -> list[bytes]:
        """The messages of all processes, whom this one helps until each has one to send.

        Errors: PeerError where one of them has failed, PeerShort where one had no memory.
        """
        self._messages += 1
        if how != FAILED:  # which waits for nothing
            self.let_go()
        if self._board is not None:
            self.heard(lambda: self._board.set(f"mmalign/{self.place}", str(self._messages)))
        while True:
            heads = self._heads(Head(how, len(message)))
            gather = first_asked(heads)
            if gather is None or any(head.how != WELL for head in heads):
                return self._bodies(message, heads)
            self._help(gather)

    def _heads(self, own: Head) -> list[Head]:
        """Of every process what it says first."""
        from torch.distributed import all_gather

        heads = [torch.zeros(len(own), dtype=torch.int64) for _ in range(self.count)]
        self.heard(lambda: all_gather(heads, torch.tensor(own), group=self._talk))
        return [Head(*head.tolist()) for head in heads]

    def _bodies(self, message: bytes, heads: Sequence[Head]) -> list[bytes]:
        from torch.distributed import all_gather

        lengths, own = [head.length for head in heads], heads[self.place].how
        bodies = [torch.zeros(max(*lengths, 1), dtype=torch.uint8) for _ in lengths]
        body = torch.frombuffer(bytearray(message.ljust(max(*lengths, 1), b"\0")), dtype=torch.uint8)
        self.heard(lambda: all_gather(bodies, body, group=self._talk))
        messages = [text.numpy().tobytes()[:length] for text, length in zip(bodies, lengths, strict=True)]
        stopped, waiting = ([rank for rank, head in enumerate(heads) if head.how == how and rank != self.place] for how in (FAILED, SHORT))
        if stopped and own != FAILED:
            self.failed = True  # that one waits for nobody any more
            raise PeerError(f"process {stopped[0]}: {messages[stopped[0]].decode()}")
        if waiting and own == WELL:
            raise PeerShort(f"process {waiting[0]} had none")
        return messages

    @contextmanager
    def watched(self, part: Callable[[str], AbstractContextManager[None]]) -> Iterator[None]:
        self._part = part
        try:
            yield
        finally:
            self._part = nullcontext

    def heard(self, act: Callable[[], Any]) -> None:
        try:
            with self._part("gather"):
                act()
        except RuntimeError as error:
            self.failed = True
            why = " ".join(str(error).split())[:200]
            raise PeerError(
                f"processes: process {self.place} of {self.count} hears nothing of {self._behind()} any more ({why})"
            ) from error

    def _behind(self) -> str:
        """Which processes have not come to the message that this one waits at: those that died, or that stall."""
        others, behind = [rank for rank in range(self.count) if rank != self.place], list[int]()
        if self._board is not None and len(others) > 1:
            self._board.set_timeout(timedelta(seconds=LOOK))
            for rank in others:
                try:
                    there = self._board.check([f"mmalign/{rank}"]) and int(self._board.get(f"mmalign/{rank}"))
                except RuntimeError:  # who keeps what is read here is gone
                    return "process 0"
                behind += [rank] if there < self._messages else []
        behind = behind or others
        return "the others" if len(behind) > 1 and behind == others else f"process {' and '.join(map(str, behind))}"


ALONE = Team()


@cache
def joined() -> Team:
    """The processes that the environment says this one belongs to (``RANK``, ``WORLD_SIZE``), joined once; alone without such.

    Errors: UserError for an environment that says it wrongly, and where the others cannot be reached.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if not size.isdecimal() or size == "0":
        raise UserError(f"WORLD_SIZE: got {size!r}, takes the number of processes, as torchrun sets it")
    if size == "1":
        return ALONE
    rank, timeout = os.environ.get("RANK", ""), os.environ.get("MMALIGN_TIMEOUT", str(TIMEOUT))
    if not rank.isdecimal() or int(rank) >= int(size):
        raise UserError(f"RANK: got {rank!r}, takes a number below WORLD_SIZE ({size}), as mmalign train --processes and torchrun set them")
    try:
        return Processes(int(rank), int(size), float(timeout))
    except ValueError as error:
        raise UserError(f"MMALIGN_TIMEOUT: got {timeout!r}, takes seconds") from error


def team_for(count: int, key: str, *, together: tuple[str, int] | None = None) -> Team:
    """``joined``. together: how many processes compute each row from now on, by a key of ``devices``; None: as before.

    Errors: UserError, beside its own, where there are fewer things (``key``) than processes to share them.
    """
    team = joined()
    if together is not None:
        team.compute_together(together[1], together[0])
    if count < team.size:
        raise UserError(f"{key}: got {count} for {team.size} processes; takes {team.size} or more, or fewer processes")
    return team
