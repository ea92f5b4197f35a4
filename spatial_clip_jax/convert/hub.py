"""Checkpoints of the Hugging Face Hub: fetched into its own cache by its own library, weights as safetensors first."""

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

SETTINGS = ["*.json", "merges.txt", "vocab.txt", "*.model"]  # configurations, and what tokenizers are made of
SAFE, OTHERS = ["*.safetensors"], ["*.bin", "*.pt", "*.pth", "*.npz"]
REPO_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)
DENIED = (401, 403)


def is_repo_id(name: str) -> bool:
    """Whether this reads "org/name" or "org/name@revision"."""
    return REPO_ID.fullmatch(name) is not None and ".." not in name


def fetch(repo_id: str) -> Path:
    """The folder of "org/name" or "org/name@revision" in the Hub's cache, downloaded where it is not there yet.

    Files of PyTorch and NumPy are fetched only where the repository has no safetensors. HF_HUB_OFFLINE, HF_HUB_CACHE,
    HF_ENDPOINT and the token of `hf auth login` hold as everywhere. ValueError for what is no id, a repository or
    revision that does not exist, or one that this user may not read; FileNotFoundError where it is neither cached nor
    reachable.
    """
    if not is_repo_id(repo_id):
        raise ValueError(f"{repo_id!r} is no repository of the Hub: expected 'org/name' or 'org/name@revision'.")
    name, _, revision = repo_id.partition("@")
    folder = _snapshot(name, revision or None, SETTINGS + SAFE)
    return folder if any(folder.glob("*.safetensors")) else _snapshot(name, revision or None, SETTINGS + OTHERS)


def _snapshot(name: str, revision: str | None, patterns: list[str]) -> Path:
    where = f"{name}@{revision}" if revision else name
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except GatedRepoError as error:
        raise _denied(where) from error
    except RevisionNotFoundError as error:
        raise ValueError(f"{name} has no revision {revision!r}: give a branch, a tag or a commit of it.") from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"{name} was not found on the Hub: check the name; if it is private, say `hf auth login` first."
        ) from error
    except HFValidationError as error:
        raise ValueError(f"{name!r} is no name that a repository of the Hub can have: {error}") from error
    except LocalEntryNotFoundError as error:
        if isinstance(error.__cause__, HfHubHTTPError):  # the Hub was there and refused, and nothing is cached
            raise _refused(where, error.__cause__) from error
        raise FileNotFoundError(
            f"{where} is not in the Hub's cache, and the Hub was not asked or not reached (HF_HUB_OFFLINE, or no "
            f"network): fetch it where there is one with `hf download {name}`, and give that folder or cache."
        ) from error
    except HfHubHTTPError as error:
        raise _refused(where, error) from error
    except OSError as error:
        raise FileNotFoundError(f"{where} could not be fetched from the Hub: {error}") from error


def _refused(where: str, error: HfHubHTTPError) -> Exception:
    denied = getattr(error.response, "status_code", None) in DENIED
    return _denied(where) if denied else FileNotFoundError(f"The Hub did not give {where}: {error}")


def _denied(where: str) -> ValueError:
    return ValueError(
        f"{where} is gated: accept its terms on its page on the Hub, then say `hf auth login`, and try again."
    )
