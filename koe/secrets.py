"""Credentials: taken out of every text that is shown or stored, and refused in paths and URLs.

They belong into the environment or a profile, which koe hands to fsspec and the Hugging Face hub
and never stores. What a client library says in its errors may still hold one.
"""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

HIDDEN = "***"

# Names of parameters of a URL, of settings and of headers, whose value is a credential.
_NAMES = (
    r"(?:x-(?:amz|goog)-(?:signature|credential|security-token)|awsaccesskeyid|aws_access_key_id"
    r"|aws_secret_access_key|aws_session_token|(?:client_?|app_?)?secret(?:_?access)?(?:_?key)?"
    r"|signature|sig|sas_?token|(?:access_?|auth_?|id_?|refresh_?|session_?)?token|api_?key"
    r"|account_?key|access_?key(?:_?id)?|shared_?access_?signature|pass(?:word|wd|phrase)|pwd|key)"
)
# A secret key of AWS may hold a slash, so a password ends at an @ alone; a number up to a slash is a port.
_PASSWORD = re.compile(r"(?<=://)[^\s/?#'\"@:]*:(?!\d{1,5}/)(?:(?!://)[^\s'\"])*(?=@)")
# Where no user stands alone, what stands before the @ is a token.
_USER = re.compile(r"(?<=\bs3://|\bgs://)[^\s/?#'\"@:*]+(?=@)|(?<=https://)[^\s/?#'\"@:*]+(?=@)")
_PARAMETER = re.compile(rf"([?&;]{_NAMES}=)[^\s&;'\"<>#]+", re.IGNORECASE)
_SETTING = re.compile(
    r"((?<![\w/])(?:aws_secret_access_key|aws_session_token|secret_access_key|accountkey|sharedaccesssignature"
    r"|password|passwd|secret|api_?key|access_?token)[\"']?\s*[=:]\s*[\"']?)[^\s\"'&;,]+",
    re.IGNORECASE,
)
_HEADER = re.compile(r"((?:bearer|authorization:\s*basic)\s+)[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)
# What tells itself from other words: Hugging Face, AWS, GitHub, GitLab, Google.
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{30,}|(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])"
    r"|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{20,}|glpat-[\w-]{16,}|ya29\.[\w-]{16,}"
)
_VARIABLE = re.compile(
    r"SECRET|TOKEN$|PASSWORD|(?:API|ACCESS|ACCOUNT|STORAGE)_KEY$|CONNECTION_STRING|SAS"
)
_MIN_LENGTH = 12  # characters of a value of the environment that is looked for: "test" is a word
_WHERE = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile in AWS_PROFILE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
    "hf": "HF_TOKEN, or `hf auth login`",
}
_SAME = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az", "adl": "az"}


def scrub(text: str) -> str:
    """Replace every credential in a text by `***`."""
    text = _USER.sub(HIDDEN, _PASSWORD.sub(HIDDEN, text))
    text = _PARAMETER.sub(rf"\1{HIDDEN}", text)
    text = _SETTING.sub(rf"\1{HIDDEN}", text)
    text = _HEADER.sub(rf"\1{HIDDEN}", text)
    text = _TOKEN.sub(HIDDEN, text)
    for value in _environment():
        text = text.replace(value, HIDDEN)
    return text


def without_credentials(path: str) -> str:
    """Return a path or URL that holds no credential.

    Raises: ValueError saying where it belongs instead.
    """
    if scrub(path) == path:
        return path
    protocol = urlsplit(path.rpartition("::")[2]).scheme
    where = _WHERE.get(
        _SAME.get(protocol, protocol),
        f"FSSPEC_{(protocol or 'PROTOCOL').upper()}_PASSWORD and the like",
    )
    raise ValueError(
        f"{scrub(path)} holds a credential, which would be stored with the run; leave it out, and "
        f"give it in the environment: {where}"
    )


def _environment() -> list[str]:
    """List the values of the variables that hold credentials, the longest first."""
    found = {
        value
        for name, value in os.environ.items()
        if _VARIABLE.search(name) and len(value) >= _MIN_LENGTH and not value.startswith(("/", "~"))
    }
    return sorted(found, key=len, reverse=True)
