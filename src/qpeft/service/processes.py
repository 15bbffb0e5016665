"""Processes that end with the one that started them, also when that one is killed."""

from __future__ import annotations

import logging
import os
import threading
import time

log = logging.getLogger("qpeft.service")


def end_with(parent: int) -> None:
    """End this process half a second after `parent` is no longer its parent."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        log.warning("the server ended: so does this process")
        os._exit(3)

    threading.Thread(target=watch, name="qpeft-parent", daemon=True).start()
