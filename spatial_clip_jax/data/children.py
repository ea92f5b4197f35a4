"""What processes that a command starts have in common."""

import multiprocessing
import os
import threading

A_CORE = 8  # processes; more of them wait for each other, and each takes some hundred MB


def check_processes(name: str, count: int, least: int) -> None:
    """ValueError unless so many processes may be started; `name` is the setting's."""
    cores = os.cpu_count() or 1
    if not least <= count <= A_CORE * cores:
        raise ValueError(
            f"{name} must be from {least} to {A_CORE * cores}, got {count}: more than {A_CORE} processes for each of "
            f"the {cores} cores are no faster, and each takes some hundred MB."
        )


def end_with_parent() -> None:
    """From now on, this process ends when the one that started it does, however that was ended."""
    parent = multiprocessing.parent_process()
    if parent is None:
        raise ValueError("this process was not started by multiprocessing")

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
