from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from koe.errors import ConfigError, ContractError
from koe.vocabulary import NUM_EMBEDDINGS
from tests.training.helpers import VOCABULARY, batch_of, small_config, small_model, small_shards
from training.config import NewRowsConfig, TinyModelConfig, TrainConfig
from training.data.batches import IGNORED
from training.data.shard_rows import ShardRows
from training.model.llama import build_model, require_master_weights
from training.step import forward


def run(model, batch):
    return forward(model, batch, "fp32")


def test_packed_logits_equal_those_of_each_document_alone(tmp_path):
    shards = small_shards(tmp_path, num_documents=4)
    rows, model = ShardRows(shards, "train"), small_model().eval()
    batch = batch_of(shards, [0, 1])
    assert batch.document_index.min() == -1, "the rows must differ in length to test padding"
    with torch.no_grad():
        hidden = model.hidden_states(batch.input_ids, batch.position_ids, batch.document_index)
        packed = model.lm_head(hidden)
        for place in range(2):
            start = 0
            for length in rows[place].document_lengths.tolist():
                ids = torch.tensor(rows[place].input_ids[start : start + length].astype("int64"))
                alone = model(input_ids=ids.unsqueeze(0)).logits[0]
                found = packed[place, start : start + length]
                torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)
                start += length


def test_packed_loss_equals_the_sum_of_the_documents(tmp_path):
    shards = small_shards(tmp_path, num_documents=4)
    rows, model = ShardRows(shards, "train"), small_model()
    batch = batch_of(shards, [0, 1, 2])
    total = run(model, batch).total
    expected = 0.0
    for number in range(3):
        start = 0
        for length in rows[number].document_lengths.tolist():
            ids = torch.tensor(rows[number].input_ids[start : start + length].astype("int64"))
            mean = model(input_ids=ids.unsqueeze(0), labels=ids.unsqueeze(0)).loss
            expected += mean.item() * (length - 1)
            start += length
    assert total.item() == pytest.approx(expected, rel=1e-5)


def test_the_id_used_for_padding_does_not_matter(tmp_path):
    model, batch = small_model(), batch_of(small_shards(tmp_path), [0, 1])
    padding = batch.document_index < 0
    assert padding.any()
    other = batch.input_ids.clone()
    other[padding] = VOCABULARY - 1
    totals = [run(model, replace(batch, input_ids=ids)).total for ids in (batch.input_ids, other)]
    assert torch.equal(*totals)


def test_the_default_tiny_model_knows_every_orpheus_id():
    model = build_model(TrainConfig(base_model=None))
    rows = model.get_input_embeddings().weight.shape[0]
    assert rows >= NUM_EMBEDDINGS
    assert rows % 64 == 0
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_bf16_base_model_becomes_fp32_and_grows(tmp_path):
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=300, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, tie_word_embeddings=True, dtype=torch.bfloat16,
            rope_parameters={"rope_type": "default", "rope_theta": 12345.0},
        )
    ).to(torch.bfloat16)  # fmt: skip
    base.save_pretrained(tmp_path)
    model = build_model(small_config(base_model=str(tmp_path)))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    weight = model.get_input_embeddings().weight
    assert weight.shape[0] >= NUM_EMBEDDINGS
    assert model.lm_head.weight is weight
    assert torch.equal(weight[:300], base.get_input_embeddings().weight.float())
    assert model.config.rope_parameters["rope_theta"] == 12345.0


def test_a_base_model_that_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"base model .*cannot be loaded.*train.base_model"):
        build_model(small_config(base_model=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("init", ["mean_cov", "per_codebook", "small_random"])
def test_new_rows_are_filled_as_configured_and_alike_on_every_rank(tmp_path, init):
    small_model(tiny=TinyModelConfig(hidden_size=16, vocab_size=300)).save_pretrained(tmp_path)
    config = small_config(base_model=str(tmp_path), new_rows=NewRowsConfig(init=init))
    one, again = (build_model(config).model.embed_tokens.weight.detach() for _ in range(2))
    assert torch.equal(one, again)
    new = one[300:]
    assert not torch.equal(new[0], new[1])
    assert 0.3 < float(new.norm(dim=1).mean() / one[:300].norm(dim=1).mean()) < 3
    assert float(new.std(dim=0).min()) > 1e-3, "28,682 rows must not be nearly the same"


def test_a_head_of_its_own_gets_new_rows_too(tmp_path):
    shape = TinyModelConfig(hidden_size=16, vocab_size=300)
    base = small_model(tiny=shape)
    base.config.tie_word_embeddings = False
    base.lm_head.weight = torch.nn.Parameter(2 * base.lm_head.weight.detach())
    base.save_pretrained(tmp_path)
    model = build_model(small_config(base_model=str(tmp_path)))
    embedding, head = model.model.embed_tokens.weight.detach(), model.lm_head.weight.detach()
    assert not torch.equal(embedding[300:], head[300:])
    ratio = head[300:].norm(dim=1).mean() / embedding[300:].norm(dim=1).mean()
    assert float(ratio) == pytest.approx(2, rel=0.2), "each is drawn from its own old rows"


def test_the_loss_is_that_of_the_settings(tmp_path):
    batch = batch_of(small_shards(tmp_path), [0, 1])
    plain, chunked, z_loss = (
        run(small_model(**change), batch)
        for change in ({"loss_kernel": "plain"}, {"loss_kernel": "chunked"}, {"z_loss": 0.1})
    )
    torch.testing.assert_close(chunked.total, plain.total)
    assert z_loss.total > chunked.total + 1
    assert torch.equal(z_loss.token_losses, chunked.token_losses)


def test_bf16_master_weights_are_there_when_allowed():
    model = small_model(master_weights="bf16", allow=["bf16_master_weights"])
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_bf16_master_weights_are_refused():
    with pytest.raises(ContractError, match="master weights must be FP32"):
        require_master_weights(small_model().to(torch.bfloat16))


def test_labels_never_cross_documents(tmp_path):
    batch = batch_of(small_shards(tmp_path), [0, 1, 2])
    before = batch.document_index.roll(1, dims=1)
    before[:, 0] = -2
    crossing = before != batch.document_index
    assert crossing.sum() >= 9
    assert (batch.labels[crossing] == IGNORED).all()
    inside = ~crossing & (batch.document_index >= 0)
    assert torch.equal(batch.labels[inside], batch.input_ids[inside])


def test_bf16_compute_stays_near_fp32(tmp_path):
    model, batch = small_model(), batch_of(small_shards(tmp_path), [0, 1])
    exact, mixed = (forward(model, batch, precision).total for precision in ("fp32", "bf16"))
    assert mixed.dtype == torch.float32
    assert not torch.equal(mixed, exact), "BF16 was not used"
    torch.testing.assert_close(mixed, exact, rtol=1e-3, atol=0)
