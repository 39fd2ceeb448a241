import pytest
import torch
from torch._dynamo.testing import CompileCounter
from transformers import LlamaConfig, LlamaForCausalLM

from koe.errors import ConfigError
from tests.training.helpers import small_config, small_model
from training.model.attention import IMPLEMENTATIONS, attention_inputs, document_boundaries

VOCABULARY = 64
# Rows of different numbers of documents, single-token documents, one row without padding.
ROWS = ([5, 1, 9, 1, 4], [20, 7], [1, 30], [31])
NUM_TOKENS = 31

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def document_index(rows=ROWS, num_tokens=NUM_TOKENS):
    index = torch.full((len(rows), num_tokens), -1, dtype=torch.int32)
    for row, lengths in zip(index, rows, strict=True):
        documents = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        row[: len(documents)] = documents.int()
    return index


def batch(rows=ROWS, num_tokens=NUM_TOKENS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    index = document_index(rows, num_tokens)
    ids = torch.randint(VOCABULARY, index.shape, generator=generator)
    starts = torch.tensor(document_boundaries(index)).diff()
    positions = torch.cat([torch.arange(length) for length in starts]).view_as(ids)
    return ids, positions, index


def llama(kind, num_key_value_heads=2, num_attention_heads=4, head_width=16, **changes):
    torch.manual_seed(0)
    settings = {
        "vocab_size": VOCABULARY, "hidden_size": num_attention_heads * head_width,
        "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": num_attention_heads,
        "num_key_value_heads": num_key_value_heads, "tie_word_embeddings": True,
        "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
        **changes,
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**settings))
    with torch.no_grad():  # sharp attention, so that a token too many is seen
        for parameter in model.parameters():
            parameter.mul_(5 if parameter.ndim == 2 else 1)
    model.set_attn_implementation(IMPLEMENTATIONS[kind])
    return model


def run(model, kind, ids, positions, index):
    """Return last hidden states and the gradients of their weighed sum."""
    hidden = model.model(
        input_ids=ids, position_ids=positions, use_cache=False, **attention_inputs(kind, index)
    ).last_hidden_state
    weights = torch.randn(
        hidden.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float32
    ).to(hidden)
    model.zero_grad()
    (hidden * weights).sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return hidden.detach(), gradients


def assert_near(found, expected):
    """Within 1e-5 of the largest value of each tensor."""
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_boundaries_are_runs_of_one_index_and_never_cross_rows():
    index = torch.tensor([[0, 0, 1, 2, -1, -1], [0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, -1]])
    assert document_boundaries(index) == [0, 2, 3, 4, 6, 12, 13, 17, 18]


def test_varlen_inputs_are_boundaries_and_a_longest_length_that_covers_each():
    inputs = attention_inputs("varlen", document_index())
    assert inputs["document_starts"].dtype == torch.int32
    assert inputs["document_starts"].tolist() == document_boundaries(document_index())
    assert isinstance(inputs["longest_document"], int)
    assert inputs["longest_document"] == 128
    long = attention_inputs("varlen", torch.zeros(1, 129, dtype=torch.int32))
    assert long["longest_document"] == 256


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2), (6, 2), (4, 1)])
def test_varlen_equals_the_mask_in_states_and_gradients(heads, key_heads):
    inputs = batch()
    expected, wanted = run(llama("mask", key_heads, heads), "mask", *inputs)
    found, gradients = run(llama("varlen", key_heads, heads), "varlen", *inputs)
    assert_near([found], [expected])
    assert gradients.keys() == wanted.keys()
    assert_near(gradients.values(), wanted.values())


@pytest.mark.parametrize("kind", ["mask", "varlen"])
def test_a_document_alone_has_the_states_that_it_has_in_its_row(kind):
    ids, positions, index = batch()
    model = llama(kind)
    found, _ = run(model, kind, ids, positions, index)
    model.set_attn_implementation("eager")
    for row, lengths in enumerate(ROWS):
        start = 0
        for length in lengths:
            part = slice(start, start + length)
            alone = model.model(input_ids=ids[row : row + 1, part]).last_hidden_state
            assert_near([found[row : row + 1, part]], [alone.detach()])
            start += length


@pytest.mark.parametrize("kind", ["mask", "varlen"])
def test_other_ids_in_one_document_change_no_other(kind):
    ids, positions, index = batch()
    model = llama(kind)
    before, _ = run(model, kind, ids, positions, index)
    other = torch.where(index == 0, (ids + 1) % VOCABULARY, ids)
    after, _ = run(model, kind, other, positions, index)
    assert torch.equal(before[index != 0], after[index != 0])
    assert (before != after).any(2)[index == 0].all()


def test_varlen_takes_part_in_autocast():
    inputs = batch()
    model = llama("varlen")
    exact, _ = run(model, "varlen", *inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, gradients = run(model, "varlen", *inputs)
    assert not torch.equal(exact, mixed), "BF16 was not used"
    assert torch.nn.functional.cosine_similarity(exact.flatten(), mixed.flatten(), 0) > 0.99
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_varlen_works_under_activation_checkpointing():
    inputs = batch()
    model = llama("varlen")
    expected, wanted = run(model, "varlen", *inputs)
    model.activation_checkpointing_enable()
    model.train()
    found, gradients = run(model, "varlen", *inputs)
    assert torch.equal(found, expected)
    assert_near(gradients.values(), wanted.values())


def test_without_documents_varlen_generates_as_sdpa_does():
    ids = torch.randint(1, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    ids[0, :4] = mask[0, :4] = 0  # padding on the left
    settings = {"max_new_tokens": 8, "do_sample": False, "attention_mask": mask}
    expected = llama("mask").eval().generate(ids, **settings)
    assert torch.equal(llama("varlen").eval().generate(ids, **settings), expected)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # read by dynamo itself
def test_a_batch_that_changes_does_not_compile_a_layer_anew():
    """The flash path traced without a GPU: on the meta device, whole layers, no graph break."""
    num_tokens, compiled = 200, []
    model = llama("varlen", num_key_value_heads=2, num_attention_heads=6, num_hidden_layers=1)
    model = model.to(device="meta", dtype=torch.bfloat16)
    counter = CompileCounter()
    model.model.layers[0].compile(fullgraph=True, backend=counter)
    for lengths in ([99, 101], [3, 1, 8, 160], [150, 40], [10] * 9, [2] * 30, [199, 1]):
        inputs = attention_inputs("varlen", document_index([lengths, lengths[::-1]], num_tokens))
        for name in ("attention_mask", "document_starts"):
            inputs[name] = inputs[name].to("meta")
        ids = torch.zeros(2, num_tokens, dtype=torch.long, device="meta")
        states = model.model(input_ids=ids, position_ids=ids, use_cache=False, **inputs)
        states.last_hidden_state.sum().backward()
        compiled.append(counter.frame_count)
    assert compiled == [1, 2, 2, 2, 2, 2]  # once more for any number of documents of any length
    torch.compiler.reset()


def test_auto_is_varlen_and_unknown_kinds_are_refused():
    for wanted, kind in {"auto": "varlen", "varlen": "varlen", "mask": "mask"}.items():
        assert small_model(attention=wanted).attention_kind == kind
    with pytest.raises(ValueError, match=r"attention\n.*'auto', 'varlen' or 'mask'"):
        small_config(attention="flash")
    with pytest.raises(ValueError, match=r"flex is no longer offered.*set it to auto"):
        small_config(attention="flex")


def test_dropout_that_the_kernel_lacks_is_refused():
    model = llama("varlen", attention_dropout=0.1).train()
    with pytest.raises(ConfigError, match=r"dropout of 0\.1.*train\.attention: mask"):
        run(model, "varlen", *batch())


def test_fp32_off_the_cpu_is_refused_by_the_flash_path():
    inputs = attention_inputs("varlen", document_index())
    meta = {
        name: value.to("meta") if torch.is_tensor(value) else value
        for name, value in inputs.items()
    }
    ids = torch.zeros(len(ROWS), NUM_TOKENS, dtype=torch.long, device="meta")
    with pytest.raises(ConfigError, match=r"varlen cannot compute in torch\.float32.*bf16"):
        llama("varlen").to("meta").model(input_ids=ids, position_ids=ids, use_cache=False, **meta)


@needs_gpu
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 2), (6, 2)])
def test_on_a_gpu_varlen_is_near_the_mask(autocast, heads, key_heads):
    rows = ([200, 1, 90], [300], [37, 100, 150])
    inputs = [part.cuda() for part in batch(rows, 300)]
    expected, wanted = run(llama("mask", key_heads, heads, 64).cuda(), "mask", *inputs)
    model = llama("varlen", key_heads, heads, 64).cuda()
    if not autocast:
        model = model.bfloat16()
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        found, gradients = run(model, "varlen", *inputs)

    def near(ours, theirs):
        ours, theirs = ours.float().flatten(), theirs.float().flatten()
        return torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.98

    assert near(found, expected)
    assert all(near(gradients[name], wanted[name]) for name in wanted)
