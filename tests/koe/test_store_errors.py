"""Whatever a client of a store raises is a StorageError that says what helps."""

from __future__ import annotations

import errno
import socket

import aiohttp
import pytest
from botocore import exceptions as botocore_errors
from fsspec.exceptions import FSTimeoutError
from multidict import CIMultiDict, CIMultiDictProxy
from s3fs.errors import translate_boto_error
from yarl import URL

from koe.errors import ConfigError, StorageError
from koe.store_errors import comes_from_store, is_absent, storage_error, storage_errors


def answered(code: str) -> Exception:
    """Make the exception of s3fs for an answer with this code."""
    answer = {"Error": {"Code": code, "Message": "said the store"}}
    return translate_boto_error(botocore_errors.ClientError(answer, "GetObject"))


def like_gcsfs(code: int) -> Exception:
    """Make an exception as gcsfs' HttpError, which has the code of the answer."""
    kind = type("HttpError", (Exception,), {"__module__": "gcsfs.retry", "code": code})
    return kind("said the store")


def web_answer(status: int) -> Exception:
    """Make the exception of aiohttp for an answer with this status."""
    request = aiohttp.RequestInfo(
        URL("http://x"), "GET", CIMultiDictProxy(CIMultiDict()), URL("http://x")
    )
    return aiohttp.ClientResponseError(request, (), status=status)


CASES = [
    (botocore_errors.NoCredentialsError(), "no valid credentials.*AWS_ACCESS_KEY_ID"),
    (answered("InvalidAccessKeyId"), "no valid credentials"),
    (answered("SignatureDoesNotMatch"), "no valid credentials"),
    (answered("ExpiredToken"), "have expired.*Renew"),
    (answered("RequestTimeTooSkewed"), "clock of this machine"),
    (answered("NoSuchBucket"), "no such bucket.*Make the bucket"),
    (answered("PermanentRedirect"), "another region.*AWS_DEFAULT_REGION"),
    (answered("AccessDenied"), "access is denied.*Let the account"),
    (answered("403"), "access is denied"),
    (answered("SlowDown"), "refuses requests for now.*fewer workers"),
    (answered("InternalError"), "refuses requests for now"),
    (botocore_errors.EndpointConnectionError(endpoint_url="http://x"), "cannot be reached"),
    (botocore_errors.ReadTimeoutError(endpoint_url="http://x"), "did not answer in time"),
    (botocore_errors.ConnectTimeoutError(endpoint_url="http://x"), "did not answer in time"),
    (aiohttp.ClientPayloadError("cut"), "cannot be reached"),
    (aiohttp.ServerDisconnectedError(), "cannot be reached"),
    (FSTimeoutError(), "cannot be reached, or did not answer"),
    (like_gcsfs(429), "refuses requests for now"),
    (like_gcsfs(401), "no valid credentials"),
    (answered("SomethingNew"), "said the store.*Free space or restore access"),
]


@pytest.mark.parametrize(("error", "words"), CASES)
def test_each_failure_has_its_remedy(error: Exception, words: str) -> None:
    assert comes_from_store(error)
    with (
        pytest.raises(StorageError, match=f"cannot read x because .*{words}"),
        storage_errors("cannot read x"),
    ):
        raise error


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), PermissionError("no"), socket.gaierror()]
)
def test_a_disk_that_fails_is_a_storage_error_and_no_store(error: OSError) -> None:
    assert isinstance(storage_error("cannot write x", error), StorageError)
    assert not comes_from_store(error)


def test_a_name_that_no_bucket_can_have_is_one_of_the_configuration() -> None:
    refused = botocore_errors.ParamValidationError(report="Invalid bucket name 'a!'\nmatch [a-z]")
    with (
        pytest.raises(ConfigError, match=r"URL is not valid.*'a!' match .*Correct the URL"),
        storage_errors("cannot read x"),
    ):
        raise refused


@pytest.mark.parametrize("error", [ValueError("x"), ConfigError("x"), ZeroDivisionError()])
def test_other_errors_pass(error: Exception) -> None:
    assert storage_error("cannot read x", error) is None
    with pytest.raises(type(error)), storage_errors("cannot read x"):
        raise error


def test_a_file_that_is_not_there_is_no_failure_and_a_bucket_is() -> None:
    assert is_absent(answered("NoSuchKey"))
    assert not comes_from_store(answered("NoSuchKey"))
    assert not is_absent(answered("NoSuchBucket"))
    assert not is_absent(PermissionError())


@pytest.mark.parametrize(
    ("cause", "absent"),
    [(aiohttp.ClientConnectionError("refused"), False), (aiohttp.ServerDisconnectedError(), False),
     (web_answer(403), False), (web_answer(500), False), (web_answer(404), True), (None, True)],
)  # fmt: skip
def test_a_web_server_that_gives_no_answer_does_not_say_that_a_file_is_absent(
    cause: Exception | None, absent: bool
) -> None:
    error = FileNotFoundError("http://x/a.tar")
    error.__cause__ = cause
    assert is_absent(error) == absent
    assert comes_from_store(error) != absent


def test_an_error_that_follows_one_that_was_dealt_with_is_no_failure_of_the_store() -> None:
    def mistaken() -> None:
        try:
            raise answered("NoSuchKey")
        except FileNotFoundError:
            {}["x"]

    with pytest.raises(KeyError) as raised:
        mistaken()
    assert not comes_from_store(raised.value)
    assert storage_error("cannot read x", raised.value) is None
