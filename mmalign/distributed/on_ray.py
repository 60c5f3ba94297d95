"""Starts a command of ours as several processes on a Ray cluster: an actor for each, which Ray places, and which runs the command.

What an actor starts is what ``--processes`` and torchrun start (``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR``), so a run on a cluster is the
same run. ``RAY_ADDRESS`` names the cluster; without it, Ray starts one on this machine. Nodes have mmalign installed, and see the folder
in which the command was given by the same path.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import IO, Any, NamedTuple

from mmalign.distributed.launch import GRACE, held_port
from mmalign.types import UserError

KEPT = ("PYTHONPATH", "OMP_NUM_THREADS", "HF_HOME", "HF_HUB_OFFLINE", "MMALIGN_TIMEOUT")
"""What of this process's environment the others get; all else is that of their node."""
WAIT = 600.0
"""Seconds to wait for room on the cluster."""


class Heard(NamedTuple):
    """Lines that a process has written since it was last asked, whether each was for stderr, and how it ended; None while it goes."""

    lines: list[tuple[bool, str]]
    code: int | None


class Rank:
    """One process of a run: what becomes an actor."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.lines: list[tuple[bool, str]] = []
        self.readers: list[threading.Thread] = []
        self.held = ExitStack()

    def address(self) -> tuple[str, int]:
        """Where the others find this node, and a port that is kept free there as long as the actor lives."""
        import ray

        return str(ray.util.get_node_ip_address()), self.held.enter_context(held_port())

    def start(self, arguments: Sequence[str], environment: Mapping[str, str], folder: str) -> str | None:
        """Starts the command; why it could not be, else None."""
        if not Path(folder).is_dir():
            return f"{socket.gethostname()} sees no {folder}; takes nodes that see the folder in which the command is given"
        command, own = [sys.executable, "-m", "mmalign", *arguments], {**os.environ, **environment}
        self.process = subprocess.Popen(command, cwd=folder, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for stream, wrong in ((self.process.stdout, False), (self.process.stderr, True)):
            self.readers.append(threading.Thread(target=self._read, args=(stream, wrong), daemon=True))
            self.readers[-1].start()
        return None

    def _read(self, stream: IO[str], wrong: bool) -> None:
        for line in stream:
            self.lines.append((wrong, line))

    def heard(self) -> Heard:
        """What the process has said since, and whether it has ended."""
        code = None if self.process is None else self.process.poll()
        if code is not None:
            for reader in self.readers:
                reader.join()
        count = len(self.lines)
        lines, self.lines = self.lines[:count], self.lines[count:]
        return Heard(lines, code)

    def signal(self, number: int) -> None:
        """Hands a signal on to the process, while it goes."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)


def launch_on_ray(arguments: Sequence[str], processes: int) -> int:
    """Runs ``python -m mmalign ARGUMENTS`` in so many actors, and returns the exit code of the first that failed; 0 where none did.

    Each has a GPU of its own where the cluster has any, else a CPU. What they say is said here. Ctrl-C, SIGTERM and SIGHUP are handed
    on; where one fails or is lost, which is said, the others have ``GRACE`` seconds to end. Errors: UserError without Ray, for fewer than
    1, for more than the cluster holds, inside of another launcher, and for a node that does not see this folder.
    """
    if processes < 1:
        raise UserError(f"--processes: got {processes}, takes 1 or more")
    if "WORLD_SIZE" in os.environ:
        raise UserError("--ray: a launcher has started this process already (WORLD_SIZE is set); takes one of the two")
    try:
        import ray
    except ImportError as error:
        raise UserError(f"--ray: needs Ray ({error}): pip install 'mmalign[ray]'") from error
    connected = ray.is_initialized()
    if not connected:
        ray.init(logging_level="error", log_to_driver=False)
    try:
        return _run(ray, arguments, processes)
    finally:
        if not connected:
            ray.shutdown()


def _run(ray: Any, arguments: Sequence[str], processes: int) -> int:
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    resources = ray.cluster_resources()
    kind = "GPU" if resources.get("GPU", 0) else "CPU"
    if processes > resources.get(kind, 0):
        raise UserError(f"--processes: got {processes}, the Ray cluster has {resources.get(kind, 0):g} {kind}s; takes at most one for each")
    places = placement_group([{kind: 1, **({"CPU": 1} if kind == "GPU" else {})}] * processes, strategy="PACK")
    try:
        if not places.wait(WAIT):
            raise UserError(f"--ray: no room for {processes} processes in {WAIT:g} s; takes a cluster with so many {kind}s free")
        actor, needs = ray.remote(Rank), {"num_cpus": 1, "num_gpus": 1 if kind == "GPU" else 0}
        strategies = [PlacementGroupSchedulingStrategy(places, placement_group_bundle_index=place) for place in range(processes)]
        ranks = [actor.options(**needs, scheduling_strategy=strategy).remote() for strategy in strategies]
        host, port = ray.get(ranks[0].address.remote())
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        shared = {"OMP_NUM_THREADS": "1", **kept, "MASTER_ADDR": host, "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
        own = [{**shared, "RANK": str(number), "LOCAL_RANK": "0"} for number in range(processes)]  # an actor sees its own GPU alone
        started = [rank.start.remote(list(arguments), each, os.getcwd()) for rank, each in zip(ranks, own, strict=True)]
        if refusals := [why for why in ray.get(started) if why]:
            raise UserError(f"--ray: {refusals[0]}")
        return _waited(ray, ranks)
    finally:
        remove_placement_group(places)  # and with it whatever still goes


def _waited(ray: Any, ranks: Sequence[Any]) -> int:
    """Says what the processes say, until all have ended; the exit code of the first that failed."""

    def hand_on(number: int, frame: FrameType | None) -> None:
        signals.append(number)

    signals, handlers = list[int](), {}
    if threading.current_thread() is threading.main_thread():
        handlers = {each: signal.signal(each, hand_on) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    codes, deadline = dict[int, int](), float("inf")
    try:
        while len(codes) < len(ranks) and time.monotonic() < deadline:
            going = [number for number in range(len(ranks)) if number not in codes]
            for sent in [signals.pop(0) for _ in range(len(signals))]:
                for number in going:
                    ranks[number].signal.remote(sent)
            for number in going:
                try:
                    lines, code = ray.get(ranks[number].heard.remote())
                except ray.exceptions.RayActorError as error:
                    lines, code = [(True, f"process {number}: its actor is lost ({' '.join(str(error).split())[:200]})\n")], 1
                for wrong, line in lines:
                    print(line, end="", flush=True, file=sys.stderr if wrong else sys.stdout)
                if code is not None:
                    codes[number] = code
            if any(codes.values()):
                deadline = min(deadline, time.monotonic() + GRACE)
            time.sleep(0.1)
    finally:
        for each, before in handlers.items():
            signal.signal(each, before)
    for number in range(len(ranks)):
        codes.setdefault(number, 1)
    return next((code if code > 0 else 128 - code for code in codes.values() if code), 0)
