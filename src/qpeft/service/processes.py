"""Processes that are kept running, and processes that end with the one that started them."""

from __future__ import annotations

import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence

log = logging.getLogger("qpeft.service")
SHORT_S = 10.0  # a process that ends within this has failed to start
DELAY_S, LONGEST_DELAY_S = 1.0, 30.0
STOP_S = 15.0
FAILED_STARTS = 5


def end_with(parent: int) -> None:
    """End this process within half a second of the end of its parent, process `parent`, even if the parent was killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        log.warning("the server ended: so does this process")
        os._exit(3)

    threading.Thread(target=watch, name="qpeft-parent", daemon=True).start()


class Children:
    """Processes kept running: one that ends is started again, after a delay that doubles while it ends at once.

    Args:
        commands: one process each; the third word names it in logs.
        environment: of all of them.
        descriptors: files that they inherit.
        give_up: called once when one of them failed to start `FAILED_STARTS` times in a row; None tries for ever.
    """

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        environment: Mapping[str, str],
        descriptors: tuple[int, ...] = (),
        give_up: Callable[[], None] | None = None,
    ) -> None:
        self._commands, self._environment, self._descriptors, self._give_up = commands, environment, descriptors, give_up
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * len(commands)
        self._lock, self._stopping = threading.Lock(), threading.Event()

    def start(self) -> None:
        """Start every process and a thread that watches it."""
        for index in range(len(self._commands)):
            threading.Thread(target=self._keep, args=(index,), daemon=True).start()

    def _keep(self, index: int) -> None:
        failures = 0
        while True:
            with self._lock:
                if self._stopping.is_set():
                    return None
                process = self._processes[index] = subprocess.Popen(
                    self._commands[index], env=self._environment, pass_fds=self._descriptors, stdin=subprocess.DEVNULL
                )
            started = time.monotonic()
            status = process.wait()
            if self._stopping.is_set():
                return None
            failures = failures + 1 if time.monotonic() - started < SHORT_S else 0
            if failures >= FAILED_STARTS and self._give_up is not None:
                told = "%s ended with status %d, %d times in a row; it is not started again"
                log.error(told, self._commands[index][2], status, failures)
                return self._give_up()
            delay = min(DELAY_S * 2 ** max(failures - 1, 0), LONGEST_DELAY_S)
            log.error("%s ended with status %d; starting it again in %g s", self._commands[index][2], status, delay)
            self._stopping.wait(delay)

    def stop(self, more_s: float = 0.0) -> None:
        """End all of them: SIGTERM, and SIGKILL after `STOP_S + more_s` seconds."""
        with self._lock:
            self._stopping.set()
        running = [process for process in self._processes if process is not None and process.poll() is None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + STOP_S + more_s
        for process in running:
            try:
                process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
