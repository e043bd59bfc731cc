"""Call a function for many items in threads for which the end of the process does not wait.

Those of `concurrent.futures` are waited for when the process ends. A thread that waits for a server would keep the
process alive after Ctrl-C for as long as the server is given time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import TypeVar

LAST_ITEM_SECONDS = 0.5
"""How long a thread may finish its item when no more results are wanted: a thread that decodes must not be ended in the
midst of a library's code, and a thread that waits for a server is left alone."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int, name: str
) -> Generator[Result, None, None]:
    """Yield what the function returns for each item, in order; at most `threads` items are ahead of the one yielded.

    An error of the function is raised when its item's turn comes.
    """
    waiting: SimpleQueue[tuple[Future[Result], Item] | None] = SimpleQueue()

    def work() -> None:
        for future, item in iter(waiting.get, None):
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(item))
                except BaseException as error:  # raised by `result`
                    future.set_exception(error)

    ahead: deque[Future[Result]] = deque()
    for _ in range(threads):
        threading.Thread(target=work, name=name, daemon=True).start()
    try:
        for item in items:
            ahead.append(Future())
            waiting.put((ahead[-1], item))
            if len(ahead) > threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        wait([future for future in ahead if not future.cancel()], LAST_ITEM_SECONDS)
        for _ in range(threads):
            waiting.put(None)
