"""Programs that want more than they are given: each ends in time, scores 0, leaves no process and no folder behind.

``try`` is what a user gets: namespaces and Landlock where the kernel has them. ``no`` has neither, so that it is the limits alone that
hold; no program signals more than its own parent and its launcher there. A third round has Landlock and no namespaces, in a user
namespace that allows no more of them.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mmalign.rewards._shared.sandbox import Limits, _remove, run
from mmalign.rewards.texts.code_tests import code_tests

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc"),
    pytest.mark.filterwarnings("ignore:code of the model"),
]
IN_ROUNDS = "program or limit or files or this_round"
"""The tests that namespaces and Landlock make a difference to."""
ROUND = os.environ.get("MMALIGN_TEST_ROUND", "")  # "landlock" in the third one
START = """
import ctypes, mmap, os, signal, socket, sys, threading, time
libc = ctypes.CDLL(None)
libc.prctl(15, b"NAME")  # a name that forks inherit
def forget():  # whoever started this may end
    os.setsid()
    libc.prctl(1, 0, 0, 0, 0)
def forked(times, what):
    for _ in range(times):
        if os.fork() == 0:
            try:
                what()
            finally:
                os._exit(0)
def hidden():  # a daemon, by a second fork
    forget()
    forked(1, lambda: (forget(), time.sleep(60)))
def launcher():  # 0 where it is out of sight
    if os.getppid() <= 1:
        return 0
    above = int(open(f'/proc/{os.getppid()}/stat').read().rpartition(')')[2].split()[1])
    return above if above > 1 and 'launch.py' in open(f'/proc/{above}/cmdline').read() else 0
def end_launcher():
    libc.prctl(1, 0, 0, 0, 0)
    above = launcher()
    try:
        above and os.kill(above, 9)
    except PermissionError:
        pass
def answer():
    return 0
"""
MANY = 120  # processes that a bomb of these tests starts, at most: six times the limit, and nothing that a machine would feel
FORGED = b'{"code": 0}\n{"code": 0, "why": "", "left": 0}\n'  # what a launcher says

PROGRAMS = {
    "fifo": "for name in os.listdir('..'):\n    os.path.isdir('../' + name) or os.remove('../' + name)\n    os.mkfifo(name + '.fifo')\n"
    "os.mkfifo('printed.0'); os.mkfifo('told.0'); time.sleep(60)",
    "deleted output": "import shutil; os.close(1); os.close(2); shutil.rmtree('.', ignore_errors=True); os.kill(os.getpid(), 9)",
    "setsid": "forked(2, lambda: (forget(), time.sleep(60)))\ntime.sleep(60)",
    "a daemon that holds the output": "forked(1, lambda: (forget(), forked(1, lambda: time.sleep(60))))",
    "fork bomb": f"def bomb():\n    for _ in range(7):\n        os.fork()\n    time.sleep(60)\nassert 2**7 > {MANY}\nbomb()",
    "zombies": f"forked({MANY}, lambda: None)\ntime.sleep(60)",
    "forks that hide": "forked(40, lambda: (forget(), forked(1, lambda: (forget(), time.sleep(60)))))\ntime.sleep(60)",
    "memory in processes": "forked(8, lambda: (bytearray(b'x') * (48 * 2**20), time.sleep(60)))\nheld = b'y' * 2**20\ntime.sleep(60)",
    "shared memory": "held = []\nfor _ in range(3):\n    m = mmap.mmap(-1, 30 * 2**20)\n    m.write(b'x' * len(m))\n    held.append(m)\n"
    "forked(3, lambda: [m.seek(0) or m.write(b'y' * len(m)) for m in [mmap.mmap(-1, 60 * 2**20)]] + [time.sleep(60)])\ntime.sleep(60)",
    "files in memory": "held = [os.memfd_create('x') for _ in range(40)]\nfor fd in held:\n    os.write(fd, b'x' * 2**23)\ntime.sleep(60)",
    "disk in pieces": "for number in range(30):\n    open(str(number), 'wb').write(b'x' * 2**22)\ntime.sleep(60)",
    "files without a name": "held = []\nfor number in range(30):\n    held.append(open('f', 'wb'))\n    os.remove('f')\n"
    "    held[-1].write(b'x' * 2**22)\n    held[-1].flush()\ntime.sleep(60)",
    "one large file": "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nopen('f', 'wb').write(b'x' * 2**25)",
    "many files": "for number in range(12_000):\n    open(str(number), 'w')\ntime.sleep(60)",
    "a deep folder": "for _ in range(1_500):\n    os.mkdir('d'); os.chdir('d')\ntime.sleep(60)",
    "a closed folder": "os.makedirs('a/b/c'); open('a/b/c/f', 'w'); os.chmod('a/b', 0); os.chmod('a', 0)",
    "ignored signals": "for number in {*range(1, 65)} - {9, 19, 32, 33}:\n    signal.signal(number, signal.SIG_IGN)\nwhile True: pass",
    "signals to the parent": "os.kill(os.getppid(), 19) if os.getppid() > 1 else 0\nos.killpg(0, 10)\ntime.sleep(60)",
    "an end of the parent": "forked(2, lambda: time.sleep(60))\nos.kill(os.getppid(), 9) if os.getppid() > 1 else 0\ntime.sleep(60)",
    "an end of the launcher": "end_launcher()\ntime.sleep(60)",
    "daemons, and an end of the launcher": "forked(3, hidden)\ntime.sleep(0.1)\nend_launcher()\nforked(3, hidden)\ntime.sleep(60)",
    "an end of the launcher, and forks for ever": f"end_launcher()\nfor _ in range({MANY}):\n    forked(1, hidden)\n    time.sleep(0.002)",
    "descriptors": f"lines = {FORGED!r}\nfor fd in range(3, 64):\n    try: os.write(fd, lines)\n    except OSError: pass\n"
    "held = []\nwhile True: held.append(os.dup(1))",
    "descriptors of the parent": f"lines = {FORGED!r}\nfor fd in range(64):\n"
    "    try: open(f'/proc/{os.getppid()}/fd/{fd}', 'wb', 0).write(lines)\n    except OSError: pass\nos._exit(1)",
    "symbolic links": "os.symlink('/', 'root'); os.symlink('.', 'loop')\nhere = os.getcwd()\n"
    "try:\n    os.rename(here, here + '.moved'); os.symlink('/', here)\nexcept OSError: pass\ntime.sleep(60)",
    "output": "while True: os.write(1, b'x' * 65536)",
    "output of many": "forked(10, lambda: [os.write(1, b'x' * 65536) for _ in range(10_000)])\ntime.sleep(60)",
    "threads": "for _ in range(500): threading.Thread(target=time.sleep, args=(60,)).start()\ntime.sleep(60)",
    "all processors": "def spin():\n    while True: pass\nforked(6, spin)\nspin()",
    "an end that says it is well": "os.write(1, b'ok\\n'); os._exit(0)",
}


def of_name(name: str) -> list[int]:
    """Processes of that name that have not ended."""
    left = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                alive = (folder / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
                if alive and (folder / "comm").read_text().strip() == name:
                    left.append(int(folder.name))
            except OSError:  # it has ended
                continue
    return left


def hostile(program: str, isolate: str) -> tuple[float, list[int], float]:
    """(score, processes that are left, seconds by the clock)."""
    name = f"mm{secrets.token_hex(5)}"
    text = START.replace("NAME", name) + program
    reward = code_tests(seconds=1.0, memory=256 * 2**20, isolate=isolate)
    began = time.monotonic()
    score = reward([text], ["p"], tests=[["assert answer() == 42"]]).item()
    return score, of_name(name), time.monotonic() - began


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Small limits, and folders where they can be counted."""
    from mmalign.rewards._shared import sandbox

    whole = sandbox._one
    monkeypatch.setattr(sandbox, "_one", lambda command, inside, limits: whole(command, inside, limits._replace(disk=2**26, processes=20)))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("mmalign-run-")] == []


def side_by_side(what: Callable[[str], Any], names: Iterable[str]) -> dict[str, Any]:
    """The answer for every name; six at a time, as most of what they take is waiting for their end."""
    with ThreadPoolExecutor(6) as pool:
        return dict(zip(names, pool.map(what, names), strict=True))


@pytest.mark.parametrize("isolate", ["try"] if ROUND else ["try", "no"])
def test_a_hostile_program_ends_scores_nothing_and_leaves_nothing(isolate):
    ended = side_by_side(lambda name: hostile(PROGRAMS[name], isolate), PROGRAMS)
    assert {name: (score, left) for name, (score, left, _) in ended.items()} == dict.fromkeys(PROGRAMS, (0.0, []))
    assert all(seconds < 120 for _, _, seconds in ended.values()), ended


LIMITS = {
    "fork bomb": "processes", "zombies": "processes", "forks that hide": "processes", "memory in processes": "memory",
    "shared memory": "memory", "files in memory": "disk", "disk in pieces": "disk", "files without a name": "disk",
    "many files": "disk", "a deep folder": "disk", "output": "output", "output of many": "output", "setsid": "time",
    "all processors": "time", "ignored signals": "time",
}  # fmt: skip


@pytest.mark.parametrize("isolate", ["try"] if ROUND else ["try", "no"])
def test_it_is_the_limit_that_ends_it(isolate):
    def ended(name):
        code = START.replace("NAME", "mmlimits") + PROGRAMS[name]
        seconds = 1.0 if LIMITS[name] == "time" else 120.0  # the others meet their limit long before their time
        done = run([[sys.executable, "-I", "-c", code]], {}, Limits(seconds=seconds, memory=256 * 2**20, isolate=isolate))[0]
        return done.code, done.why

    ends = side_by_side(ended, LIMITS)
    if os.geteuid() != 0:  # of such a user the kernel counts processes itself: forks fail, and the program goes on, or ends
        ends |= {name: (None, "processes") for name, (_, why) in ends.items() if LIMITS[name] == "processes" and not why}
    assert ends == {name: (None, why) for name, why in LIMITS.items()}


@pytest.mark.skipif(not hasattr(os, "SCHED_RR") or os.geteuid() != 0, reason="only root may run before all others, and needs to")
def test_who_watches_runs_before_whom_it_watches():
    said = subprocess.run([sys.executable, "-c", AHEAD], capture_output=True, text=True, check=True).stdout.split()
    allowed = bool(int(said[0]))
    assert said[1:] == ([str(os.SCHED_RR | os.SCHED_RESET_ON_FORK), str(os.SCHED_OTHER)] if allowed else [str(os.SCHED_OTHER)] * 2)


AHEAD = """
import os
from mmalign.rewards._shared import launch
try:
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    allowed = 1
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
except PermissionError:
    allowed = 0
launch._ahead_of_all()
print(allowed, os.sched_getscheduler(0), flush=True)
if os.fork() == 0:
    print(os.sched_getscheduler(0), flush=True)
    os._exit(0)
os.wait()
"""


def test_a_limit_on_all_together_is_not_met_by_what_they_share():
    """Forty MiB in one process and eight forks of it are forty MiB."""
    code = START.replace("NAME", "mmshare") + (
        "held = b'x' * (40 * 2**20)\nforked(8, lambda: time.sleep(0.5))\nfor _ in range(8): os.wait()\nprint('well')"
    )
    done = run([[sys.executable, "-I", "-c", code]], {}, Limits(seconds=300.0, memory=256 * 2**20))[0]
    assert (done.code, done.output, done.why) == (0, "well\n", "")


def test_files_are_written_in_the_folder_alone(tmp_path):
    code = f"open('inside', 'w').write('x'); open('/dev/null', 'w').write('x'); open({str(tmp_path / 'outside')!r}, 'w')"
    done = run([[sys.executable, "-I", "-c", code]], {}, Limits(seconds=300.0))[0]
    if "landlock" in done.lacks:
        pytest.skip("this kernel has no Landlock")
    assert done.code == 1 and "outside" in done.output and not (tmp_path / "outside").exists()


def test_a_folder_is_removed_however_deep_it_is(tmp_path):
    deep = "import os\nfor _ in range(3_000):\n    os.mkdir('d'); os.chdir('d')\nopen('f', 'w')"
    (tmp_path / "mmalign-run-deep").mkdir()
    subprocess.run([sys.executable, "-c", deep], cwd=tmp_path / "mmalign-run-deep", check=True)
    _remove(str(tmp_path / "mmalign-run-deep"))
    assert not (tmp_path / "mmalign-run-deep").exists()


def test_the_end_of_training_is_the_end_of_its_code(tmp_path):
    """A killed process takes the code that it runs with it, sessions of its own included."""
    name = f"mm{secrets.token_hex(5)}"
    code = START.replace("NAME", name) + PROGRAMS["setsid"]
    script = (
        f"import sys; from mmalign.rewards._shared.sandbox import run, Limits; "
        f"run([[sys.executable, '-I', '-c', {code!r}]], {{}}, Limits(seconds=3000.0, isolate='no'))"
    )
    training = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "TMPDIR": str(tmp_path / "own")}, start_new_session=True)
    (tmp_path / "own").mkdir()
    until = time.monotonic() + 600
    while len(of_name(name)) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    assert len(of_name(name)) == 3
    training.kill()
    training.wait()
    while of_name(name) and time.monotonic() < until:
        time.sleep(0.05)
    assert of_name(name) == []


def test_orphans_of_others_are_left_alone():
    """What somebody else's child left behind comes to this process while a command runs, and lives; a guarded child of its own does too."""
    import ctypes

    from mmalign.rewards._shared import launch, orphans

    assert launch.libc is not None
    guarded = f"import runpy; own = runpy.run_path({launch.__file__!r}); own['libc'].prctl(38, 1, 0, 0, 0); "
    guarded += f"own['_mark'].__globals__['MARKS'] = {launch.MARKS - 1}; own['_mark'](); print(); import time; time.sleep(60)"
    daemon = "import os, time; os.fork() and os._exit(0); print(os.getpid(), flush=True); os.close(1); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-u", "-c", guarded], stdout=subprocess.PIPE) as own:
        assert own.stdout is not None and own.stdout.readline() == b"\n"
        with orphans.adopted():
            orphan = int(subprocess.run([sys.executable, "-c", daemon], stdout=subprocess.PIPE, check=True).stdout)
            assert orphan in launch.children(os.getpid())
        assert own.poll() is None and orphan in launch.children(os.getpid())
        own.kill()
    os.kill(orphan, 9)
    os.waitpid(orphan, 0)
    is_one = ctypes.c_int(1)
    launch.libc.prctl(orphans.IS_SUBREAPER, ctypes.byref(is_one), 0, 0, 0)
    assert not is_one.value


@pytest.mark.skipif(bool(ROUND), reason="this is that round")
def test_the_same_without_namespaces():
    """This file in a user namespace that allows no others."""
    unshare = shutil.which("unshare")
    command = ["--user", "--map-root-user", "sh", "-c", 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"', "sh"]
    if unshare is None or subprocess.run([unshare, *command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespace can be made here")
    arguments = ["-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", "--import-mode=importlib", "-k", IN_ROUNDS, __file__]
    done = subprocess.run(
        [unshare, *command, sys.executable, *arguments], env={**os.environ, "MMALIGN_TEST_ROUND": "landlock"}, capture_output=True,
        text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


@pytest.mark.skipif(ROUND != "landlock", reason="of the round without namespaces")
def test_this_round_has_no_namespaces():
    assert "namespaces" in run([[sys.executable, "-c", ""]], {}, Limits(seconds=300.0))[0].lacks
