"""Opens the fsspec file system of a URL, and says what is missing for one that cannot be opened."""

from __future__ import annotations

import tarfile
import zipfile
from typing import Any

from fsspec.core import url_to_fs

from koe.errors import ConfigError

# What file systems raise for a URL that lacks a part, as zip:// without an archive does, or whose
# archive is none; failing storage raises OSError, or an error of its own.
NO_PLACE = (
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    zipfile.BadZipFile,
    tarfile.TarError,
)
_PACKAGES = {"smbclient": "smbprotocol"}  # where a module's package has another name


def file_system(url: str, **options: Any) -> tuple[Any, str]:
    """Return the file system of a path or URL, and the path in it.

    Raises: ConfigError where the protocol is unknown, or needs a package that is not installed.
    """
    try:
        return url_to_fs(url, **options)
    except ImportError as error:
        missing = getattr(error.__cause__, "name", None) or error.name
        package = _PACKAGES.get(missing, missing) if missing else None
        raise ConfigError(
            f"{url} cannot be opened",
            f"a package is not installed: {error}",
            f"Install it: `pip install {package}`." if package else "Install it.",
        ) from error
    except NO_PLACE as error:
        raise no_place(url, error) from error


def no_place(url: str, error: Exception) -> ConfigError:
    """Say that no file can have this URL, for which a file system raised `error`."""
    name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return ConfigError(
        f"{url} cannot be opened",
        f"{name}{error}",
        "Name a local path, or a URL of a protocol that fsspec knows, such as s3://bucket/folder.",
    )
