"""What commands share: the config and the working folder, quiet logs, and errors in one line."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict, config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file, with an argument after a colon.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run; it is made if it is not there.")
CHATTY = ("absl", "jax", "orbax", "etils")


def run(command: Callable[[ConfigDict, Path], None]) -> None:
    """Runs `command(config, workdir)`."""
    flags.mark_flags_as_required(["config", "workdir"])

    def main(arguments: list[str]) -> None:
        if len(arguments) > 1:
            raise app.UsageError(f"unexpected arguments {arguments[1:]}; settings are --config.key=value")
        logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
        for name in CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
        with user_errors():
            command(CONFIG.value.lock(), Path(str(WORKDIR.value)))

    app.run(main, flags_parser=_parsed)


def _parsed(arguments: list[str]) -> list[str]:
    """absl's own parsing, but a setting that the config does not have or take ends in one line."""
    try:
        return app.parse_flags_with_usage(arguments)
    except (AttributeError, KeyError, TypeError, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """A user's mistake ends the process with its message and status 1, not with a traceback."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
