from __future__ import annotations

import io
import os
import signal
import threading

import pytest

from mmalign.runs.progress import Interrupt, Progress, clock, numbers


def test_clock():
    assert [clock(s) for s in (-1, 42.4, 185, 7621)] == ["0 s", "42 s", "3 min 05 s", "2 h 07 min"]


def test_numbers_leave_out_what_is_missing():
    assert numbers({"reward": 0.51234, "kl": 1.25, "loss": 2.0}) == "reward 0.512  KL 1.25 nats"
    assert numbers({"reward": None}) == ""


def test_quiet_where_there_is_no_terminal():
    stream = io.StringIO()
    with Progress(25, every=10, stream=stream) as progress:
        for step in range(1, 26):
            progress.update(step, {"reward": 0.5, "kl": 0.0})
        progress.say("done")
    lines = stream.getvalue().splitlines()
    assert [text.split()[1] for text in lines[:-1]] == ["10/25", "20/25", "25/25"]
    assert "reward 0.500" in lines[0] and lines[-1] == "done"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal():
    stream = Terminal()
    with Progress(10, start=4, stream=stream) as progress:
        progress.update(7, {"reward": 0.25})
        progress.say("a [line] above")
    assert "7/10" in stream.getvalue() and "reward 0.250" in stream.getvalue() and "a [line] above" in stream.getvalue()


def test_the_first_interrupt_waits_and_the_second_does_not():
    before = signal.getsignal(signal.SIGINT)
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), Interrupt(stream) as interrupt:
        assert not interrupt.interrupted
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.interrupted and "Ctrl-C again" in stream.getvalue()
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second one did not stop it")
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_scheduler_and_a_closing_terminal_may_ask_twice(name):
    number = signal.Signals[name]
    before, stream = signal.getsignal(number), io.StringIO()
    with pytest.raises(KeyboardInterrupt), Interrupt(stream) as interrupt:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert (
            interrupt.name == name and stream.getvalue().startswith(f"\n{name}: finishing this step") and stream.getvalue().count("\n") == 2
        )
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(number) is before


def test_a_hang_up_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt(io.StringIO()) as interrupt:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interrupt.interrupted
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


class Gone(io.StringIO):
    """A terminal that was closed."""

    def __init__(self, tty: bool):
        super().__init__()
        self.tty, self.gone = tty, False

    def isatty(self) -> bool:
        return self.tty

    def write(self, text):
        if self.gone:
            raise OSError(5, "Input/output error")
        return super().write(text)


@pytest.mark.parametrize("tty", [False, True])
def test_a_terminal_that_is_gone_costs_its_lines_alone(tty):
    stream = Gone(tty)
    with Progress(4, every=1, stream=stream) as progress, Interrupt(stream) as interrupt:
        progress.update(1, {})
        stream.gone = True
        progress.update(2, {"reward": 0.5})
        progress.say("above")
        os.kill(os.getpid(), signal.SIGHUP)
        assert interrupt.interrupted


def test_handlers_come_back_after_an_error():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="x"), Interrupt():
        raise ValueError("x")
    assert signal.getsignal(signal.SIGINT) is before


def test_nothing_happens_outside_the_main_thread():
    seen = []

    def work():
        with Interrupt() as interrupt:
            seen.append((interrupt.interrupted, signal.getsignal(signal.SIGINT)))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
