"""How far a study is, told while its runs are at work: they write into logs of their own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from hookflat.terminal import duration

SILENCE = 30.0
"""Seconds from one line to the next."""


class Progress:
    """What is done of a study, and what is at work; several threads begin and end runs."""

    def __init__(self, total: int, workers: int, say: Callable[[str], None]) -> None:
        self.total, self.workers, self.say = total, workers, say
        self.at_work: dict[str, float] = {}
        self.done: set[str] = set()
        self.seconds: list[float] = []

    def begun(self, name: str) -> None:
        """A run begins."""
        self.at_work[name] = time.monotonic()

    def ended(self, name: str) -> None:
        """A run is made, or was there already, which takes no second and says nothing of how long others take."""
        seconds = time.monotonic() - self.at_work.pop(name)
        self.done.add(name)
        if seconds > 1:
            self.seconds.append(seconds)

    @contextmanager
    def told(self) -> Generator[None]:
        """Inside, a line says so every `SILENCE` seconds."""
        over = threading.Event()

        def tell() -> None:
            while not over.wait(SILENCE):
                self.say(self.line())

        thread = threading.Thread(target=tell, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def line(self) -> str:
        """Runs done and at work, how long one takes, and how long the rest does."""
        now = time.monotonic()
        runs = ", ".join(f"{name} for {duration(now - began)}" for name, began in list(self.at_work.items()))
        text = f"         {len(self.done)} of {self.total} runs; at work: {runs or 'none'}"
        if not self.seconds:
            return text
        mean = sum(self.seconds) / len(self.seconds)
        left = (self.total - len(self.done)) * mean / self.workers
        return f"{text}; one takes {duration(mean)}, the rest {duration(left)}"
