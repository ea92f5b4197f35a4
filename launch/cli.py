"""What commands share: the config and the working folder, quiet logs, and errors in one line."""

import ast
import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from absl import app, flags
from ml_collections import ConfigDict, config_flags
from safetensors import SafetensorError

CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file, with an argument after a colon.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run; it is made if it is not there.")
CHATTY = ("absl", "jax", "orbax", "etils")


def run(command: Callable[[ConfigDict, Path], None], workdir: str | None = None) -> None:
    """Runs `command(config, workdir)`; without a default the workdir must be given."""
    flags.set_default(WORKDIR, workdir)
    flags.mark_flags_as_required(["config"] if workdir else ["config", "workdir"])
    flags.register_validator("workdir", bool, "is empty; give a folder.")

    def main(arguments: list[str]) -> None:
        if len(arguments) > 1:
            raise app.UsageError(f"unexpected arguments {arguments[1:]}; settings are --config.key=value")
        quiet_logs()
        with user_errors():
            command(_config(), Path(str(WORKDIR.value)))

    app.run(main, flags_parser=_parsed)


def _config() -> ConfigDict:
    try:
        config = CONFIG.value
        if str(config.get("distributed", "")).startswith("{"):
            _read_dict(config, "distributed")
        return config.lock()
    except (OSError, SyntaxError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"--config names no config file such as configs/quickstart.py ({reason})") from error


def _read_dict(config: ConfigDict, name: str) -> None:
    """A setting that is a word or a dict: on the command line both are text."""
    try:
        value = ast.literal_eval(str(config[name]))
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"--config.{name}={config[name]} is no dict such as {{'process_id': 0}}") from error
    with config.ignore_type():
        config[name] = value


def quiet_logs() -> None:
    """Our own lines as they are, warnings of the libraries that talk much."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)


def _parsed(arguments: list[str]) -> list[str]:
    """absl's own parsing, but a setting that the config does not have or take ends in one line."""
    try:
        return flags.FLAGS(arguments)
    except (AttributeError, KeyError):
        sys.exit(f"error: {_unknown_setting(arguments)}")
    except (flags.Error, TypeError, ValueError, OSError, SyntaxError) as error:
        # ml_collections puts the whole traceback of a failing config into its message; the reason comes last.
        sys.exit(f"error: {str(error).strip().splitlines()[-1].strip()}")


def _unknown_setting(arguments: list[str]) -> str:
    """Which --config.a.b=value names nothing, and what there is in its place."""
    named = [argument.partition("=")[2] for argument in arguments if argument.startswith("--config=")]
    config = flags.FLAGS["config"].parser.parse(named[-1]) if named else None
    for argument in arguments:
        section, where = config, "config"
        names = argument.partition("=")[0].split(".")[1:] if argument.startswith("--config.") else []
        for name in names:
            if not isinstance(section, ConfigDict) or name not in section:
                known = ", ".join(sorted(section) or ["none"]) if isinstance(section, ConfigDict) else "no parts"
                return f"{argument}: {where} has no setting {name!r}; it has {known}"
            section, where = section[name], f"{where}.{name}"
    return f"the settings {arguments[1:]} do not fit the config"


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """A user's mistake, or a full disk, ends the process with its message and status 1, not with a traceback."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError, SafetensorError) as error:
        sys.exit(f"error: {error}")
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).strip().splitlines()[0]
        sys.exit(f"error: {reason} Lower config.batch_size or config.scale, or shard over more devices.")
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
