"""Before a run begins, its hosts make sure that they run the same config by the same code."""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections

from spatial_clip_jax.train.distributed import gathered, initialize
from spatial_clip_jax.train.workdir import first_lines, flattened, resolve

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
OWN = "distributed"  # the section in which hosts differ


def join(config: ml_collections.ConfigDict) -> None:
    """Joins this process to the others by `config.distributed`, and checks that all of them are of one mind.

    Raises:
      ValueError: naming hosts and fields, if a config, a version or a line of this package's code differs.
    """
    initialize(config.to_dict().get(OWN, "off"))
    if jax.process_count() > 1:
        told = gathered(json.dumps(_account(config)))
        check_agreement([json.loads(text) for text in told])


def check_agreement(accounts: list[dict[str, Any]]) -> None:
    """ValueError, naming hosts and fields, unless all hosts give the same account."""
    names = sorted({name for account in accounts for name in account})
    faults = [fault for name in names if (fault := _fault(name, [account.get(name) for account in accounts]))]
    if faults:
        raise ValueError(
            f"the hosts do not run the same:\n{first_lines(faults)}\n"
            "Start all of them with the same command, config and installation."
        )


def _fault(name: str, values: list[Any]) -> str:
    """Who says what of a field, or an empty string where all say the same."""
    sayers: dict[str, list[str]] = {}
    for host, value in enumerate(values):
        sayers.setdefault(json.dumps(value), []).append(str(host))
    told = [f"{value} on host {', '.join(hosts)}" for value, hosts in sayers.items()]
    return f"{name}: {'; '.join(told)}" if len(told) > 1 else ""


def _account(config: ml_collections.ConfigDict) -> dict[str, Any]:
    settings: Mapping[str, Any] = {name: value for name, value in resolve(config).items() if name != OWN}
    account = {f"config.{name}": value for name, value in flattened(settings).items()}
    account |= {f"version of {name}": importlib.metadata.version(name) for name in PACKAGES}
    return account | {"code of spatial_clip_jax": code_hash()}


def code_hash(package: Path = Path(__file__).parents[1]) -> str:
    """A hash of the package's Python files, whatever folder they lie in."""
    found = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        found.update(f"{path.relative_to(package)}\n".encode() + path.read_bytes())
    return found.hexdigest()[:16]
