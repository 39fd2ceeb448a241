"""The Llama 3 tokenizer: complete for export, and as an encoder of nothing but plain text.

Source of the split pattern: meta-llama/llama-models, `models/llama3/tokenizer.py`; names of the
special tokens: `tokenizer.json` of meta-llama/Llama-3.1 and 3.2.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, processors
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from koe.errors import ConfigError, ContractError
from koe.vocabulary import END_OF_TEXT, NUM_BASE, NUM_BASE_TEXT, NUM_EMBEDDINGS, START_OF_TEXT

PACKAGE = "llama-models"
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BEGIN, _TURN = "<|begin_of_text|>", "<|eot_id|>"
_REMEDY = (
    f"Set tokenize.tokenizer to {PACKAGE} (after `pip install llama-models`), to a folder with "
    "Llama 3's tokenizer.json, or to a hub id that you may download."
)


def special_tokens() -> list[str]:
    """Name the 256 special tokens of Llama 3 in the order of their ids, from 128000."""
    return [
        _BEGIN,
        "<|end_of_text|>",
        "<|reserved_special_token_0|>",
        "<|reserved_special_token_1|>",
        "<|finetune_right_pad_id|>",
        "<|reserved_special_token_2|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        _TURN,
        "<|python_tag|>",
        *(f"<|reserved_special_token_{i}|>" for i in range(3, 248)),
    ]


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Load the Llama 3 tokenizer from the package `llama-models`, a folder, or the hub.

    Raises: ConfigError when it cannot be loaded or is not Llama 3's.
    """
    tokenizer = _from_package() if name == PACKAGE else _from_pretrained(name)
    ids = tokenizer.convert_tokens_to_ids([_BEGIN, _TURN])
    num_text = tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False)
    if ids != [START_OF_TEXT, END_OF_TEXT] or num_text > NUM_BASE_TEXT:
        raise ConfigError(
            f"the tokenizer {name} is not Llama 3's",
            f"{_BEGIN} and {_TURN} are {ids} in it instead of {[START_OF_TEXT, END_OF_TEXT]}, and "
            f"{num_text} ids are text",
            _REMEDY,
        )
    return tokenizer


def _from_pretrained(name: str) -> PreTrainedTokenizerFast:
    try:
        return PreTrainedTokenizerFast.from_pretrained(name)
    except (OSError, ValueError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"the tokenizer {name} cannot be loaded", why, _REMEDY) from error


def _from_package() -> PreTrainedTokenizerFast:
    path = _packaged_model()
    backend = _RankConverter(
        str(path), pattern=SPLIT_PATTERN, extra_special_tokens=special_tokens()
    ).converted()
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{_BEGIN} $A",
                pair=f"{_BEGIN} $A {_BEGIN}:1 $B:1",
                special_tokens=[(_BEGIN, START_OF_TEXT)],
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=_BEGIN,
        eos_token="<|end_of_text|>",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def _packaged_model() -> Path:
    # find_spec does not run the package: its own imports (a web client, images) are not needed.
    spec = importlib.util.find_spec("llama_models")
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        path = Path(folder) / "llama3" / "tokenizer.model"
        if path.is_file():
            return path
    why = f"no llama3/tokenizer.model in {folders}" if folders else "it is not installed"
    raise ConfigError(f"the package {PACKAGE} has no Llama 3 tokenizer", why, _REMEDY)


class _RankConverter(TikTokenConverter):
    """Reads the rank file itself: tiktoken's reader keeps a copy of it in a temporary folder,
    keyed by its path only, and would go on serving that copy after the file has changed."""

    @staticmethod
    def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
        try:
            pairs = [line.split() for line in Path(tiktoken_url).read_bytes().splitlines() if line]
            return {base64.b64decode(token): int(rank) for token, rank in pairs}
        except (OSError, ValueError) as error:
            raise ConfigError(f"{tiktoken_url} cannot be read", str(error), _REMEDY) from error


def tokenizer_sha256(tokenizer: PreTrainedTokenizerFast) -> str:
    """Hash everything that decides a tokenizer's ids: vocabulary, merges, split pattern."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def orpheus_tokenizer(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Add Orpheus' 28,682 tokens: `<custom_token_{i}>` has the id 128256 + i, len is 156,938.

    As in Orpheus' own script they are not special tokens: its decoder reads them from decoded text,
    from which `skip_special_tokens` must not remove them. Returns a new tokenizer.
    Raises: ContractError when the base leaves other ids free.
    """
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    names = [f"<custom_token_{i}>" for i in range(NUM_EMBEDDINGS - NUM_BASE)]
    backend.add_tokens([AddedToken(name, normalized=False, special=False) for name in names])
    ends = [backend.token_to_id(names[0]), backend.token_to_id(names[-1])]
    if ends != [NUM_BASE, NUM_EMBEDDINGS - 1]:
        raise ContractError(
            f"Orpheus' tokens have the ids {ends[0]}..{ends[1]}",
            f"they must be {NUM_BASE}..{NUM_EMBEDDINGS - 1}",
            "Start from a Llama 3 tokenizer without added tokens.",
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


@dataclass(frozen=True)
class TextTokenizer:
    """What workers need to encode plain text, carried inside the stage.

    Converting the package's file would take 3.5 s, and the files behind a hub id may change between
    two workers; the 6 MB of JSON take 0.9 s to open and are the same for all.
    """

    sha256: str  # of the complete tokenizer
    backend_json: str = field(repr=False)

    def open(self) -> TextEncoder:
        return _open(self.backend_json)


@lru_cache(maxsize=2)  # it takes a second: stages of several sources in one process share it
def _open(backend_json: str) -> TextEncoder:
    return TextEncoder(Tokenizer.from_str(backend_json))


def text_tokenizer(tokenizer: PreTrainedTokenizerFast) -> TextTokenizer:
    """Strip a tokenizer of its added tokens and of the BOS that it would prepend.

    Without them a text that spells `<|eot_id|>` or `<custom_token_10>` cannot become that id.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    return TextTokenizer(tokenizer_sha256(tokenizer), json.dumps(state, ensure_ascii=False))


class TextEncoder:
    """Encodes plain text to ids below 128000, even text that spells a special token."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode texts (valid Unicode), each to a list of ids.

        Raises: ContractError when an id is not one of text.
        """
        ids = [
            encoding.ids
            for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        ]
        for text, text_ids in zip(texts, ids, strict=True):
            if text_ids and max(text_ids) >= NUM_BASE_TEXT:
                raise ContractError(
                    f"the text {text[:80]!r} was encoded to the id {max(text_ids)}",
                    f"ids of text lie below {NUM_BASE_TEXT}",
                    "This is a defect in koe, please report it with that text.",
                )
        return ids
