"""Code of a model: what passes, what does not, and what the process it runs in keeps it from."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

from mmalign.rewards._shared import launch
from mmalign.rewards._shared.sandbox import Limits, run
from mmalign.rewards.texts.code_tests import code_of, code_tests
from mmalign.rewards.texts.testbench import testbench as bench
from mmalign.types import UserError

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="limits of POSIX systems"),
    pytest.mark.filterwarnings("ignore:code of the model"),
]
LONG = 300.0  # seconds, for what ends by itself
GOOD = "Sure:\n```python\ndef add(a, b):\n    return a + b\n```\nDone."
TESTS = ["assert add(1, 2) == 3", "assert add(-1, 1) == 0", "assert add('a', 'b') == 'ab'"]


def one(text, tests=TESTS, **more):
    return code_tests(seconds=LONG, **more)([text], ["p"], tests=[tests]).item()


def python(code, **limits):
    return run([[sys.executable, "-I", "-c", code]], {}, Limits(**{"seconds": LONG, **limits}))[0]


@pytest.fixture(scope="module")
def isolated():
    return not python("").lacks


def test_the_part_of_the_tests_that_pass():
    texts = [
        GOOD,
        "def add(a, b): return abs(a) + b if isinstance(a, int) else a + b",
        "```python\ndef add(a, b): return 0\n```\nbetter:\n```py\ndef add(a, b): return a + b\n```",
        "I would rather not.",
        "```python\ndef add(a, b):\n```",
        "import sys\nsys.exit(0)",
        "import os\ndef add(a, b): return a + b\nos._exit(0)",
    ]
    scores = code_tests(seconds=LONG)(texts, ["p"] * 7, tests=[TESTS] * 7)
    assert scores.tolist() == pytest.approx([1, 2 / 3, 1, 0, 0, 0, 0])
    assert one(texts[1], score="all") == 0 and one(GOOD, score="all") == 1
    assert one(GOOD, tests="assert add(1, 1) == 2\nassert add(2, 2) == 4") == 1


def test_which_code_is_meant():
    assert code_of("x\n```verilog\na\n```\n```\nb\n```", ("verilog", "v")) == "a\n"
    assert code_of("x\n```verilog\na\n```\n```\nb\n```", ("",)) == "b\n"
    assert code_of("no fence", ("python",)) == "no fence"


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "import os, time\nif os.fork() == 0:\n    os.setsid()\ntime.sleep(60)",
        "held = bytearray(10**9)",
        "print('x' * 10**9)",
    ],
    ids=["loop", "sleep", "fork", "memory", "output"],
)
def test_what_takes_too_much_is_ended(code):
    done = python(code, seconds=0.5, memory=2**28)
    assert done.code != 0 and len(done.output) <= 2**20


def test_a_command_that_waits_for_a_processor_is_not_late(monkeypatch):
    """The clock goes on by a second at each look; the command asks for a processor, and has had one for .1 s in each."""
    now, used, states = itertools.count(), itertools.count(), {"R", "S"}
    monkeypatch.setattr(launch.time, "monotonic", lambda: float(next(now)))
    monkeypatch.setattr(launch, "usage", lambda root, own: (states, next(used) / 10))
    watch = launch._Watch({"wall": 3.0, "longest": 90.0}, -1, -1)
    assert not any(watch._late(pause=1.0) for _ in range(30)) and watch.time == pytest.approx(2.9)
    states.remove("R")  # what sleeps is
    assert watch._late(pause=1.0)
    states.add("R")
    kept = launch._Watch({"wall": 1e9, "longest": 90.0}, -1, -1)
    assert sum(not kept._late(pause=1.0) for _ in range(100)) == 90  # whoever lets it wait


def test_the_clock_of_commands_stands_while_we_do(monkeypatch):
    looks = iter([100.0, 100.3, 4000.0, 4000.1])
    monkeypatch.setattr(launch.time, "monotonic", lambda: next(looks))
    clock = launch.Clock()
    assert [clock.look(0.5) for _ in range(3)] == pytest.approx([0.3, 0.5, 0.1]) and clock.time == pytest.approx(0.9)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="as Linux tells it")
def test_what_processes_have_used():
    busy = "import os, time\nwhile time.process_time() < .3: pass\nprint(flush=True)\nif os.fork() == 0:\n    time.sleep(600)\nos.wait()"
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", busy], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        while not (below := launch.descendants(process.pid)):
            pass
        states, used = launch.usage(os.getpid(), set())
        assert "S" in states and used > 0.25
        os.kill(below[0], signal.SIGKILL)
    assert launch.usage(os.getpid(), set())[1] > 0.25, "of those that ended, too"


def test_files_are_small_and_the_folder_is_gone():
    code = "import os; open('f', 'wb').write(b'x' * 10); print(os.getcwd()); open('big', 'wb').write(b'x' * 2**24)"
    done = python(code, file=2**21)
    assert done.code != 0 and not Path(done.output.splitlines()[0]).exists()


def test_the_environment_is_empty(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "very-secret")
    done = python("import os, sys; print(dict(os.environ), sys.path)")
    assert done.code == 0 and "very-secret" not in done.output and "HOME" in done.output
    assert python("input()").code != 0  # and nothing is read from the terminal


def test_isolated_code_has_no_network_and_sees_no_process(isolated):
    if not isolated:
        pytest.skip("this system gives no namespaces to this user")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        call = f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=2); print('through')"
        assert "through" not in python(call).output
        assert "through" in python(call, isolate="no").output
    kill = f"import os; os.kill({os.getpid()}, 0); print('seen')"
    assert "seen" not in python(kill).output and "seen" in python(kill, isolate="no").output


def test_an_open_network_is_said(monkeypatch):
    from mmalign.rewards._shared import sandbox

    whole = sandbox._one
    monkeypatch.setattr(sandbox, "_one", lambda *a: whole(*a)._replace(lacks=("namespaces", "landlock")))
    with pytest.warns(UserWarning) as caught:
        one(GOOD, tests=TESTS[:1])
    says = [str(warning.message) for warning in caught]
    assert any("with the network open" in text for text in says) and any("no Landlock" in text for text in says)
    with pytest.raises(UserError, match=r"code_tests\.isolate: got must, and code would run with the network open and other processes"):
        code_tests(isolate="must")
    monkeypatch.setattr(sandbox, "_one", whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one(GOOD, tests=TESTS[:1], isolate="no")


@pytest.mark.filterwarnings("default")
def test_a_launcher_that_does_not_start_is_a_missing_score(monkeypatch, tmp_path):
    from mmalign.rewards._shared import sandbox

    part, whole = code_tests(seconds=LONG), code_tests(seconds=LONG, score="all")
    built = bench(commands=COMMANDS, file="design.py", bench="bench.py")
    monkeypatch.setattr(sandbox, "LAUNCH", tmp_path / "nothing.py")
    with pytest.warns(UserWarning, match="code of the model could not be run, and has no score"):
        assert all(reward([GOOD], ["p"], tests=[TESTS[:1]]).isnan().all() for reward in (part, whole))
        assert built(["x = 4"], ["p"], bench=["pass"]).isnan().all()
    with pytest.raises(UserError, match="code_tests: the process for running code did not start"):
        code_tests()


def test_rows_run_at_the_same_time_and_in_their_order():
    texts = [f"n = {row}" for row in range(6)]
    reward = code_tests(seconds=LONG, at_once=3)
    before = threading.active_count()
    assert reward(texts, ["p"] * 6, tests=[["assert n % 2 == 0"]] * 6).tolist() == [1, 0, 1, 0, 1, 0]
    assert threading.active_count() == before


# ---- testbenches


COMMANDS = [[sys.executable, "-m", "py_compile", "design.py"], [sys.executable, "bench.py"]]


def benched(text, held="import sys; sys.path.insert(0, '.'); import design; assert design.x == 4; print('ALL PASSED')", **more):
    more = {"commands": COMMANDS, "file": "design.py", "bench": "bench.py", "passed": "ALL PASSED", "seconds": LONG, **more}
    return bench(**more)([text], ["p"], bench=[held]).item()


def test_testbenches():
    assert benched("```\nx = 4\n```") == 1
    assert benched("x = 5") == 0 and benched("x = 5", built=0.25) == 0.25
    assert benched("x = ", built=0.25) == 0
    assert benched("import sys; sys.exit(0)", built=0.25) == 0.25  # ended well, and passed nothing
    assert benched("x = 5", "pass", passed=None) == 1
    assert benched("```vhdl\nx = 5\n```\n```\nx = 4\n```") == 1


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: code_tests(score="some"), "code_tests: got score='some'"),
        (lambda: code_tests(seconds=0), "code_tests: got seconds=0"),
        (lambda: code_tests(isolate="maybe"), r"code_tests\.isolate: got 'maybe'"),
        (lambda: one(GOOD, tests=[]), r"code_tests\.column: got '\[\]', takes a list of statements"),
        (lambda: benched("x", commands=[]), r"testbench\.commands: got \[\]"),
        (lambda: benched("x", commands=[["no-such-program"]]), "no program called 'no-such-program' is installed"),
        (lambda: benched("x", file="../x"), r"testbench: got the file name '\.\./x'"),
        (lambda: benched("x", bench="design.py"), "takes two names"),
        (lambda: benched("x", passed="("), r"testbench\.passed: '\(' is no regular expression"),
    ],
)
def test_mistakes_are_one_line(build, says):
    with pytest.raises(UserError, match=says) as caught:
        build()
    assert "\n" not in str(caught.value)
