"""What processes that a command starts have in common."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """From now on, this process ends when the one that started it does, however that was ended."""
    parent = multiprocessing.parent_process()
    if parent is None:
        raise ValueError("this process was not started by multiprocessing")

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
