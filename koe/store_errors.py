"""Says what a failing file system or object store means, whatever client library raised it.

The libraries are not imported: their exceptions are known by the name of their module, and by the code
that the store answered with.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from koe.errors import ConfigError, KoeError, StorageError

AGAIN = "Free space or restore access, then run the same command again: it resumes."
# Packages whose exceptions tell of a store or of the way to it. Few of them are OSErrors.
_CLIENTS = frozenset(
    [
        "adlfs",
        "aiobotocore",
        "aiohttp",
        "azure",
        "boto3",
        "botocore",
        "fsspec",
        "gcsfs",
        "google",
        "httpcore",
        "httpx",
        "huggingface_hub",
        "ocifs",
        "oci",
        "paramiko",
        "requests",
        "s3fs",
        "smbprotocol",
        "urllib3",
    ]
)
_ERRNO = re.compile(r"^\[Errno \d+\] ")  # what the system calls the error follows it


@dataclass(frozen=True)
class _Kind:
    """A kind of failure: names of exceptions and codes of answers, what it is, and what to do."""

    names: frozenset[str]
    why: str
    remedy: str
    error: type[KoeError] = StorageError


def _kind(names: str, why: str, remedy: str, error: type[KoeError] = StorageError) -> _Kind:
    return _Kind(frozenset(names.split()), why, remedy, error)


# S3's codes: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html. The first kind that
# fits is taken: a wrong key answers a request that is denied as well.
_KINDS = (
    _kind(
        "NoCredentialsError PartialCredentialsError CredentialRetrievalError NoAuthTokenError "
        "SSOTokenLoadError TokenRetrievalError ProfileNotFound DefaultCredentialsError RefreshError "
        "ClientAuthenticationError InvalidAccessKeyId SignatureDoesNotMatch 401",
        "there are no valid credentials",
        "Give every machine that works on the run credentials of the store, for S3 by "
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or by `aws configure`.",
    ),
    _kind(
        "ExpiredToken ExpiredTokenException RequestExpired TokenRefreshRequired InvalidToken "
        "UnauthorizedSSOTokenError",
        "the credentials have expired",
        "Renew them, then run the same command again: it resumes.",
    ),
    _kind(
        "RequestTimeTooSkewed",
        "the clock of this machine is wrong",
        "Set it, then run the same command again: it resumes.",
    ),
    _kind(
        "ParamValidationError InvalidBucketName",
        "its URL is not valid",
        "Correct the URL; a bucket's name has only letters, digits, dots and hyphens.",
        ConfigError,
    ),
    _kind(
        "NoSuchBucket ContainerNotFound",
        "there is no such bucket",
        "Make the bucket, or correct its name: koe makes none.",
    ),
    _kind(
        "PermanentRedirect IllegalLocationConstraintException AuthorizationHeaderMalformed 301",
        "the bucket is in another region",
        "Name its region, for S3 by AWS_DEFAULT_REGION.",
    ),
    _kind(
        "AccessDenied AllAccessDisabled AccountProblem Forbidden 403",
        "access is denied",
        "Let the account list, read, write and delete below this place, then run the same command "
        "again: it resumes.",
    ),
    _kind(
        "SlowDown Throttling ThrottlingException RequestLimitExceeded TooManyRequests 429 503 "
        "ServiceUnavailable InternalError 500 RequestTimeout 502 504",
        "the store refuses requests for now, and they were repeated",
        "Run the same command again later, or with fewer workers: it resumes.",
    ),
    _kind(
        "EndpointConnectionError ConnectTimeoutError ReadTimeoutError ConnectionClosedError "
        "ProxyConnectionError HTTPClientError ResponseStreamingError IncompleteReadError "
        "IncompleteRead ClientConnectionError ClientPayloadError ServiceRequestError FSTimeoutError "
        "ConnectionError Timeout TransportError SSLError",
        "the store cannot be reached, or did not answer in time",
        "Check the network and the endpoint, then run the same command again: it resumes.",
    ),
)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__  # a context may have been dealt with


def names_in(error: BaseException) -> set[str]:
    """Collect what clients of stores said, if one failed: the names of their exceptions, and codes of answers."""
    found: set[str] = set()
    for one in _chain(error):
        kinds = [kind for kind in type(one).__mro__ if _package(kind) in _CLIENTS]
        if kinds:
            found |= {kind.__name__ for kind in kinds} | set(_codes(one))
    return found


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _codes(error: Any) -> Iterator[str]:
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # of botocore
        yield str(response.get("Error", {}).get("Code", ""))
    for name in ("status", "code", "status_code", "error_code"):
        value = getattr(error, name, None)
        if isinstance(value, int | str):
            yield str(value)
            return  # aiohttp warns of its other name


def comes_from_store(error: BaseException) -> bool:
    """Tell whether a client of a store failed, other than by saying that there is no such file."""
    return not is_absent(error) and bool(names_in(error))


def is_absent(error: BaseException) -> bool:
    """Tell whether there is no such file or folder.

    A bucket that does not exist is a failure, and so is a web server that gives no answer, for which
    fsspec raises the same error.
    """
    return isinstance(error, FileNotFoundError) and _kind_of(names_in(error)) is None


def _kind_of(names: set[str]) -> _Kind | None:
    return next((kind for kind in _KINDS if kind.names & names), None)


def storage_error(what: str, error: BaseException, remedy: str = AGAIN) -> KoeError | None:
    """Explain the failure of a file system or store; None for an error of another kind.

    It is a StorageError, or a ConfigError where no store could have a file of that name.

    `what` is the failure in one clause, `remedy` what helps where nothing better is known.
    """
    names = names_in(error)
    if not names and not isinstance(error, OSError):
        return None
    said = _ERRNO.sub("", " ".join(str(error).split())) or type(error).__name__
    kind = _kind_of(names)
    if kind is None:
        return StorageError(what, said, remedy)
    return kind.error(what, f"{kind.why} ({said.removesuffix('.')})", kind.remedy)


@contextmanager
def storage_errors(what: str, remedy: str = AGAIN) -> Iterator[None]:
    """Turn every failure of a file system or store into the error that `storage_error` makes of it.

    Other errors, and those of koe, pass.
    """
    try:
        yield
    except KoeError:
        raise
    except Exception as error:
        failure = storage_error(what, error, remedy)
        if failure is None:
            raise
        raise failure from error


@contextmanager
def absent_as_none() -> Iterator[None]:
    """Pass over the error that says that there is no such file or folder."""
    try:
        yield
    except FileNotFoundError as error:
        if not is_absent(error):
            raise
