"""Credentials are taken out of what is shown and stored, and nothing else is."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from koe.errors import BadRecord, ConfigError, StorageError
from koe.secrets import HIDDEN, scrub, without_credentials
from pipeline.config.load import load_config
from tests.calling import koe
from tests.corpus import write_corpus

_SIGNS = string.ascii_letters + string.digits
SECRETS = st.text(_SIGNS + "+/=-_.", min_size=12, max_size=40).filter(
    lambda text: text[0] in _SIGNS and text not in "https://host/sources/wavs"
)
TOKENS = st.text(_SIGNS, min_size=34, max_size=34).map("hf_{}".format) | st.text(
    string.ascii_uppercase + string.digits, min_size=16, max_size=16
).map("AKIA{}".format)
FORMS = [
    "https://host/a.tar?X-Amz-Signature={}",
    "https://host/a.tar?X-Amz-Expires=60&X-Amz-Credential={}&X-Amz-Date=1",
    "https://host/a.tar?X-Goog-Signature={}",
    "https://account.blob.core.windows.net/c/a.tar?sv=2024&sig={}&se=2026",
    "https://host/a.tar?token={}",
    "https://host/a.tar?download=1&access_token={}#top",
    "https://host/a.tar?key={}",
    "https://host/a.tar?client_secret={}",
    "https://host/a.tar?password={}",
]
TEXTS = [
    *(f"GET {form} failed: 403" for form in FORMS),
    "{{'aws_secret_access_key': '{}', 'region': 'x'}}",
    "DefaultEndpointsProtocol=https;AccountKey={};EndpointSuffix=x",
    "Authorization: Bearer {}",
]


@given(st.sampled_from(TEXTS), SECRETS)
def test_a_secret_in_a_known_place_is_gone(text, secret):
    scrubbed = scrub(text.format(secret))
    assert secret not in scrubbed
    assert HIDDEN in scrubbed
    assert scrub(scrubbed) == scrubbed


@given(
    st.sampled_from(["ftp", "sftp", "https", "s3", "smb"]),
    st.text(_SIGNS + "!+=-_.:/", min_size=12).filter(
        lambda text: not re.match(r"\d{1,5}/|.*//", text)
    ),
)
def test_a_password_of_a_url_is_gone_and_the_host_stays(protocol, password):
    scrubbed = scrub(f"cannot open {protocol}://reader:{password}@host:21/corpus/a.tar, sorry")
    assert password not in scrubbed
    assert scrubbed.endswith("@host:21/corpus/a.tar, sorry")


@given(TOKENS)
def test_a_token_is_known_by_its_form(token):
    assert (
        scrub(f"invalid token ({token}) for org/data") == f"invalid token ({HIDDEN}) for org/data"
    )


def test_the_value_of_a_variable_is_gone_wherever_it_stands(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG")
    monkeypatch.setenv("KOE_KEYBOARD", "something-else-here")
    assert scrub("signed by wJalrXUtnFEMI/K7MDENG") == f"signed by {HIDDEN}"
    assert scrub("something-else-here") == "something-else-here"


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/corpus/JA-{000..029}.tar",
        "sftp://reader@host/corpus",
        "zip://a.wav::s3://bucket/a.zip",
        "https://host/a.tar?versionId=3&part=2",
        "/data/hf_commonvoice_japanese/token.tar",
        "clip 17: the key of the token is 3, at 12:30@noon",
        "C:\\corpus\\a@b.tar",
        "../../etc/passwd:0",
        "data/secret=1/x.jsonl",
        "http://127.0.0.1:5555/x@y",
        "abfs://container@account/corpus",
    ],
)
def test_other_text_stays(text):
    assert scrub(text) == without_credentials(text) == text


def test_errors_hold_none():
    url = "https://u:hunter2hunter2@host/a?sig=abcdefabcdef"
    for error in (StorageError(url, url, url), ConfigError(url), BadRecord("audio", url)):
        assert "hunter2" not in str(error) + repr(error) + repr(vars(error))
        assert "abcdef" not in str(error) + repr(error) + repr(vars(error))


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("s3://AKIAABCDEFGHIJKLMNOP:abc@bucket/run", "AWS_PROFILE"),
        ("abfs://c@account/run?sig=abc", "AZURE_STORAGE_SAS_TOKEN"),
        ("gcs://bucket/run?access_token=abc", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("ftp://reader:secret@host/run", "FSSPEC_FTP_PASSWORD"),
        ("s3://minioadmin:abc/abc@bucket/run", "AWS_PROFILE"),
        ("s3://abcabcabc@bucket/run", "AWS_PROFILE"),
    ],
)
def test_a_url_with_a_credential_is_told_where_it_belongs(url, where):
    with pytest.raises(ValueError, match="holds a credential") as caught:
        without_credentials(url)
    assert where in str(caught.value)
    assert "abc" not in str(caught.value).replace("account", "")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


PLACES = {
    "the run directory": lambda data, url: data.update(run_dir=url),
    "a source": lambda data, url: data["sources"]["speech"][0].update(paths=[url]),
    "the audio": lambda data, url: data["sources"]["speech"][0].update(audio_root=url),
}


@pytest.mark.law
@pytest.mark.parametrize("place", PLACES)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(form=st.sampled_from(FORMS), secret=SECRETS)
def test_a_configuration_with_a_credential_is_refused_and_nothing_of_it_is_kept(
    corpus, place, form, secret
):
    data = yaml.safe_load(corpus.read_text())
    PLACES[place](data, form.format(secret))
    config = corpus.parent / "secret.yaml"
    config.write_text(yaml.safe_dump(data))
    before = set(corpus.parent.rglob("*"))
    code, out, err = koe("plan", "-c", str(config))
    assert code == 2
    assert "holds a credential" in err
    assert secret not in out + err
    assert set(corpus.parent.rglob("*")) == before


def test_an_override_that_is_wrong_is_quoted_without_its_credentials(corpus):
    secret = "hf_" + "a1B2" * 9
    with pytest.raises(ConfigError) as caught:
        load_config(corpus, [f"snac.weight=https://u:{secret}@host/x"])
    assert secret not in str(caught.value)
