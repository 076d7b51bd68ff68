"""A thread that makes the next items while the last one is worked on."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T], size: Callable[[T], int], limit: int) -> Generator[T]:
    """The items in their order, made in a thread of its own as long as those that wait are at most `limit` in size.

    One item always fits. What the thread raises is raised here, after the items before it; closing this generator
    ends the thread, at its next item at the latest.
    """
    queue = _Queue[T](limit)
    thread = threading.Thread(target=queue.fill, args=(items, size), name="read-ahead", daemon=True)
    thread.start()
    try:
        while (found := queue.take()) is not None:
            yield found[0]
    finally:
        queue.end()
        thread.join()


class _Queue(Generic[T]):
    """Items that wait, each with its size; `done` once there will be no more."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.waiting: deque[tuple[T, int]] = deque()
        self.bytes = 0
        self.done = self.stopped = False
        self.error: BaseException | None = None
        self.changed = threading.Condition()

    def fill(self, items: Iterable[T], size: Callable[[T], int]) -> None:
        """Put items in until there are no more, or nobody wants them."""
        try:
            for item in items:
                weight = size(item)
                with self.changed:
                    self.changed.wait_for(lambda: self.stopped or not self.waiting or self.bytes + weight <= self.limit)  # noqa: B023
                    if self.stopped:
                        return
                    self.waiting.append((item, weight))
                    self.bytes += weight
                    self.changed.notify_all()
        except BaseException as error:  # all of them belong to whoever takes the items
            self.error = error
        finally:
            with self.changed:
                self.done = True
                self.changed.notify_all()

    def take(self) -> tuple[T] | None:
        """The next item, in a tuple; None after the last."""
        with self.changed:
            self.changed.wait_for(lambda: self.waiting or self.done)
            if not self.waiting:
                if self.error is not None:
                    raise self.error
                return None
            item, weight = self.waiting.popleft()
            self.bytes -= weight
            self.changed.notify_all()
            return (item,)

    def end(self) -> None:
        """Nobody wants more."""
        with self.changed:
            self.stopped = True
            self.waiting.clear()
            self.changed.notify_all()
