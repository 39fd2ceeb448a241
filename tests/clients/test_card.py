"""The blocks of a model card run as they stand, beside the export or beside a run with shards."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec

import datasets
import numpy as np
import pytest
import soundfile
import torch
from snac import SNAC
from transformers import AutoModelForCausalLM

from koe.vocabulary import CODEC_HZ, END_OF_SPEECH, END_OF_TEXT, FIRST_AUDIO, SLOTS
from stages.snac.codec import Codec, resolve_codec
from tests.clients.exports import ANSWERED, CODES, ROPES, model_with, spoken_ids
from tests.clients.releases import LLAMA_CPP
from tests.stages.speech import write_snac_weights
from tests.training.shards import write_shards
from training.data.batches import collate
from training.data.shard_rows import ShardRows
from training.export.documents import export_documents

pytestmark = pytest.mark.slow

# What transformers, peft and torch warn of among themselves, on a machine without a GPU.
quietly = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:'pin_memory' argument is set as true:UserWarning",
)

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def card(exports):
    return (exports / "llama3" / "model" / "README.md").read_text("utf-8")


@pytest.fixture
def beside(exports, monkeypatch):
    monkeypatch.chdir(exports / "llama3")


def block(card: str, words: str) -> str:
    """Return the one block in which the words occur."""
    (found,) = [text for text in BLOCK.findall(card) if words in text]
    return found


def run(code: str, **names) -> dict:
    """Run a block as it stands, in which `names` are known; return all names."""
    exec(compile(code, "card", "exec"), names)
    return names


@pytest.fixture(scope="module")
def spoken(card, exports):
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(exports / "llama3")
        return run(block(card, "model.generate(prompt, "))


def test_transformers_speaks_and_ends(spoken):
    assert spoken["ids"] == [*spoken_ids(), END_OF_SPEECH]


@pytest.mark.usefixtures("beside")
def test_transformers_writes_and_ends(card, spoken, capsys):
    names = run(block(card, "apply_chat_template"), **spoken)
    assert capsys.readouterr().out.strip() == ANSWERED
    assert names["answer"][0, -1] == END_OF_TEXT


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
@pytest.mark.usefixtures("beside")
def test_vllm_speaks_and_ends(card):
    assert run(block(card, "from vllm"))["ids"] == [*spoken_ids(), END_OF_SPEECH]


@pytest.mark.skipif(not LLAMA_CPP.folder.exists(), reason="`make clients` builds llama.cpp")
@pytest.mark.usefixtures("beside")
def test_llama_cpp_speaks_and_ends(card, tmp_path):
    more = "import json\nprint(json.dumps(ids))\n"
    (tmp_path / "block.py").write_text(block(card, "from llama_cpp") + more)
    done = LLAMA_CPP.python(tmp_path / "block.py")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == spoken_ids()  # it does not spell the end


def test_ids_become_sound(card, spoken, tmp_path, monkeypatch):
    weights = write_snac_weights(tmp_path)  # the published ones cannot be downloaded here
    load = SNAC.from_pretrained

    def seeded(name):
        model = load(str(weights))
        torch.manual_seed(7)  # of the decoder's noise
        return model

    monkeypatch.setattr(SNAC, "from_pretrained", seeded)
    monkeypatch.chdir(tmp_path)
    # Behind the speech: a frame with a code of the first slot in its second, and what follows it.
    broken = [*spoken["ids"][:-1], *[FIRST_AUDIO] * SLOTS, *spoken_ids(), END_OF_SPEECH]
    expected = Codec.open(resolve_codec(str(weights), seed=7)).decode(CODES, 7)
    for ids in (spoken["ids"], broken):
        run(block(card, "from snac"), ids=ids)
        audio, hz = soundfile.read("speech.wav", dtype="float32")
        assert hz == CODEC_HZ
        np.testing.assert_allclose(audio, np.clip(expected, -1, 1), atol=1e-3)


@pytest.fixture(scope="module")
def trained_on(exports, tmp_path_factory):
    """A folder with the model, the shards of a run, and their documents as Parquet."""
    folder = tmp_path_factory.mktemp("trained-on")
    (folder / "model").symlink_to(exports / "llama3" / "model")
    shards = write_shards(folder / "run" / "shards", num_rows=4, row_tokens=96)
    export_documents(shards, folder / "data", loss_on="response", cache_gigabytes=1)
    return folder


@quietly
def test_the_trainer_reads_shards_as_koe_does(card, trained_on, monkeypatch):
    pytest.importorskip("accelerate")
    monkeypatch.chdir(trained_on)
    names = run(block(card, "def one_row"))
    before = AutoModelForCausalLM.from_pretrained("model").state_dict()
    moved = [
        key for key, of in names["model"].state_dict().items() if not torch.equal(of, before[key])
    ]
    assert len(moved) == len(before)
    rows = ShardRows(trained_on / "run" / "shards", "train")
    batch = collate([rows[0], rows[1]], 156_992, rows.sources)
    koe = model_with(ROPES["llama3"])
    with torch.no_grad():
        koe.load_state_dict(before)
        losses = koe(
            batch.input_ids,
            document_index=batch.document_index,
            labels=batch.labels,
            position_ids=batch.position_ids,
        )
        one_row = names["one_row"](list(names["shards"].select([0, 1])))
        model = AutoModelForCausalLM.from_pretrained("model")
        theirs = model(**one_row, use_cache=False).loss
        apart = model(**one_row | {"position_ids": None}, use_cache=False).loss
    ours = losses.total / batch.num_supervised
    assert torch.isclose(ours, theirs, rtol=1e-5)
    assert not torch.isclose(ours, apart, rtol=1e-3)  # where documents see each other


@quietly
def test_an_adapter_trains_on_the_documents(card, trained_on, monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.chdir(trained_on)
    names = run(block(card, "from peft"))
    states = names["model"].state_dict()
    learnt = [name for name, weight in states.items() if "lora_B" in name and weight.any()]
    assert len(learnt) == 7 * 2  # of every layer
    assert (trained_on / "adapted" / "adapter_model.safetensors").exists()


def test_the_documents_are_what_orpheus_own_scripts_take(trained_on, monkeypatch):
    """canopyai/Orpheus-TTS, finetune/train.py: `load_dataset`, then the Trainer without a collator."""
    monkeypatch.chdir(trained_on)
    data = datasets.load_dataset("data", split="train")
    assert {"input_ids", "labels", "attention_mask"} <= set(data.column_names)
    rows = ShardRows(trained_on / "run" / "shards", "train")
    lengths = [n for row in (rows[k] for k in range(len(rows))) for n in row.document_lengths]
    assert [len(ids) for ids in data["input_ids"]] == lengths
