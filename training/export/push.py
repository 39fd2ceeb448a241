"""Uploads an exported folder to the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
)

from koe.errors import ConfigError, StorageError

# What of an earlier push is replaced; what else lies in the repository stays.
_REPLACED = ["*.safetensors", "*.gguf", "*.json"]


def prepare_repository(repository: str) -> None:
    """Make the repository OWNER/NAME of a model, private, unless it is there already.

    Raises: ConfigError for a name that the hub does not allow, or without the right to write there;
    StorageError when the hub cannot be reached.
    """
    if repository.count("/") != 1:
        raise ConfigError(
            f"--push {repository} names no repository", remedy="Write it as OWNER/NAME."
        )
    with _asking(repository):
        HfApi().create_repo(repository, private=True, exist_ok=True)


def push(folder: Path, repository: str) -> str:
    """Upload a folder as one commit, which replaces the model that was there; return its URL.

    Raises: ConfigError, StorageError; the folder stays, so `hf upload` can be tried.
    """
    with _asking(repository):
        commit = HfApi().upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message="Upload a model exported by koe",
            delete_patterns=_REPLACED,
        )
    return str(commit.repo_url)


@contextmanager
def _asking(repository: str) -> Iterator[None]:
    try:
        yield
    except (HFValidationError, BadRequestError) as error:
        raise ConfigError(f"{repository} is no name of a repository", _first_line(error)) from error
    except LocalTokenNotFoundError as error:
        raise ConfigError(
            f"{repository} cannot be written", _first_line(error), "Run `hf auth login` first."
        ) from error
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403, 404):
            raise ConfigError(
                f"{repository} cannot be written",
                _first_line(error),
                "Run `hf auth login` with a token that may write there, or name another repository.",
            ) from error
        raise _unreachable(repository, error) from error
    except (HTTPError, OSError, RuntimeError) as error:  # the last of a large file
        raise _unreachable(repository, error) from error


def _unreachable(repository: str, error: Exception) -> StorageError:
    return StorageError(
        f"the hub did not take {repository}",
        _first_line(error),
        "A folder that was written stays: upload it with `hf upload OWNER/NAME FOLDER`.",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
