"""One progress bar for a guided call, whatever calls of the pipeline are made for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class OneBar:
    """Stands where a pipeline's ``progress_bar`` is: its own bar, longer by the steps of each further call, and none in silent ones."""

    def __init__(self, own: Any):
        self.own, self.bar, self.silent = own, None, False

    def __call__(self, iterable: Iterable[Any] | None = None, total: int | None = None) -> _Part:
        items = None if iterable is None else list(iterable)
        steps = total if items is None else len(items)
        if self.silent:
            return _Part(None, items)
        if self.bar is None:
            self.bar = self.own(total=steps)
        elif steps is not None:
            self.bar.total = (self.bar.total or 0) + steps
            self.bar.refresh()
        return _Part(self.bar, items)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


class _Part:
    """What one call of the pipeline sees of the bar, as of a bar of its own; leaving it closes nothing."""

    def __init__(self, bar: Any, items: list[Any] | None):
        self.bar, self.items = bar, items

    def __enter__(self) -> _Part:
        return self

    def __exit__(self, *error: Any) -> None:
        return None

    def __iter__(self) -> Iterator[Any]:
        for item in self.items or []:
            yield item
            self.update()

    def update(self, n: int = 1) -> None:
        """As many steps more are done."""
        if self.bar is not None:
            self.bar.update(n)


@contextmanager
def one_bar(pipe: Any) -> Iterator[OneBar]:
    """While the block lasts, all calls of the pipeline move one bar."""
    bar = OneBar(pipe.progress_bar)
    pipe.__dict__["progress_bar"] = bar
    try:
        yield bar
    finally:
        del pipe.__dict__["progress_bar"]
        bar.close()
