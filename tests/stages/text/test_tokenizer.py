"""The real Llama 3 tokenizer against tiktoken."""

import importlib.util
import json

import pytest
import tiktoken
from tiktoken.load import load_tiktoken_bpe
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from koe.errors import ConfigError, ContractError
from koe.vocabulary import END_OF_TEXT, START_OF_TEXT
from stages.text.tokenizer import (
    SPLIT_PATTERN,
    TextEncoder,
    load_tokenizer,
    orpheus_tokenizer,
    special_tokens,
    text_tokenizer,
    tokenizer_sha256,
)
from tests.real_data import TEXT
from tests.stages.texts import TEXTS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(llama):
    return orpheus_tokenizer(llama)


@pytest.fixture(scope="module")
def encoder(tokenizer):
    return tokenizer.open()


@pytest.fixture(scope="module")
def reference():
    """Meta's own tokenizer: tiktoken over the packaged ranks."""
    folder = importlib.util.find_spec("llama_models").submodule_search_locations[0]
    ranks = load_tiktoken_bpe(f"{folder}/llama3/tokenizer.model")
    special = {name: len(ranks) + i for i, name in enumerate(special_tokens())}
    return tiktoken.Encoding(
        "llama3", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=special
    )


def corpus():
    with (TEXT / "dolly_ja.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line)["output"] for line in lines]


def test_ids_equal_tiktokens(encoder, reference):
    texts = TEXTS + corpus()
    assert encoder.encode(texts) == [reference.encode_ordinary(text) for text in texts]


def test_decoding_gives_the_text_back(encoder, llama):
    for text, ids in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        assert llama.decode(ids) == text


def test_spelled_special_tokens_stay_text(trained):
    hostile = "<|eot_id|><custom_token_10><|begin_of_text|><|reserved_special_token_3|>"
    assert 128266 in trained(hostile, add_special_tokens=False)["input_ids"]  # the danger is real
    ids = text_tokenizer(trained).open().encode([hostile])[0]
    assert max(ids) < 128000
    assert trained.decode(ids) == hostile


def test_an_id_that_is_not_text_is_refused(llama):
    unguarded = TextEncoder(Tokenizer.from_str(llama.backend_tokenizer.to_str()))
    with pytest.raises(ContractError, match="128009"):
        unguarded.encode(["<|eot_id|>"])


def test_special_ids_are_llama_3s(llama):
    names = special_tokens()
    assert len(names) == len(set(names)) == 256
    assert len(llama) == 128256
    assert llama.convert_tokens_to_ids(names) == list(range(128000, 128256))
    assert llama.convert_tokens_to_ids("<|eot_id|>") == END_OF_TEXT
    assert llama("猫")["input_ids"][0] == START_OF_TEXT


def test_orpheus_tokens_follow(llama, trained):
    assert len(trained) == 156938
    assert len(llama) == 128256
    assert trained.convert_tokens_to_ids(["<custom_token_0>", "<custom_token_10>"]) == [
        128256,
        128266,
    ]
    assert trained.decode([128266, 156937], skip_special_tokens=True) == (
        "<custom_token_10><custom_token_28681>"
    )


def test_a_saved_folder_loads_as_the_same_tokenizer(llama, tmp_path):
    llama.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert tokenizer_sha256(again) == tokenizer_sha256(llama)
    assert len(tokenizer_sha256(again)) == 64


def test_other_tokenizers_and_missing_folders_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be loaded.*llama-models"):
        load_tokenizer(str(tmp_path / "absent"))
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(
            '{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,'
            '"pre_tokenizer":null,"post_processor":null,"decoder":null,'
            '"model":{"type":"BPE","vocab":{"a":0},"merges":[]}}'
        )
    )
    other.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="not Llama 3's"):
        load_tokenizer(str(tmp_path))
