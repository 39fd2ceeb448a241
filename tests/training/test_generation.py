"""Speech is generated as a plain loop would, and its grammar is counted."""

import numpy as np
import pytest
import torch

from koe.errors import ConfigError
from koe.vocabulary import (
    END_OF_AI,
    END_OF_SPEECH,
    SLOTS,
    START_OF_HUMAN,
    START_OF_SPEECH,
    audio_ids,
)
from tests.training.speaking import ALONE, CODES, DOCUMENT, PROMPT, config_for, settings, whole
from training.config import TinyModelConfig
from training.generation import REPETITION_PENALTY, Grammar, Prompt, generate, grammar, valid_codes
from training.model.llama import build_model


@pytest.fixture(scope="module")
def model():
    return build_model(config_for()).train()


@pytest.fixture(scope="module")
def rote():
    """Make a model that says of each token which one follows it in DOCUMENT, and nothing else."""
    model = build_model(config_for())
    chain = torch.from_numpy(DOCUMENT[len(PROMPT.ids) - 1 : -1].astype(np.int64))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        known = torch.nn.functional.normalize(model.model.embed_tokens.weight[chain[:-1]])
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
        model.lm_head.weight[chain[1:]] = known
    return model


def spoken_without_cache(model, prompt, num_tokens):
    """Take the likeliest token again and again, each time from a pass over everything."""
    ids = list(prompt.ids)
    for _ in range(num_tokens):
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([ids])).logits[0, -1]
        seen = torch.tensor(sorted(set(ids)))
        penalised = scores[seen]
        scores[seen] = torch.where(
            penalised < 0, penalised * REPETITION_PENALTY, penalised / REPETITION_PENALTY
        )
        ids.append(int(scores.argmax()))
        if ids[-1] == END_OF_SPEECH:
            break
    return ids[len(prompt.ids) :]


@pytest.mark.slow
def test_prompts_of_unequal_length_are_spoken_as_each_alone(model, rote):
    prompts = [
        PROMPT,
        Prompt("longer", (START_OF_HUMAN, 128000, *range(40, 60), START_OF_SPEECH)),
        Prompt("short", (START_OF_HUMAN, START_OF_SPEECH)),
    ]
    for chosen in (model, rote):
        found = generate(chosen, prompts, settings(), 0, ALONE)
        assert [speech.prompt for speech in found] == prompts
        for speech in found:
            assert speech.ids == spoken_without_cache(chosen, speech.prompt, 3 * SLOTS)


def test_what_is_known_by_rote_is_spoken_and_ends(rote):
    (found,) = generate(rote, [PROMPT], settings(), 0, ALONE)
    assert found.ids == [*audio_ids(CODES).tolist(), END_OF_SPEECH]
    assert grammar(found.ids) == Grammar(2, 2, 1.0, True)
    assert np.array_equal(valid_codes(found.ids), CODES)
    (cut,) = generate(rote, [PROMPT], settings(max_frames=1), 0, ALONE)
    assert cut.ids == found.ids[:SLOTS]
    assert not grammar(cut.ids).ended


def test_speech_is_a_function_of_the_seed(model):
    prompts = [PROMPT, Prompt("other", PROMPT.ids[2:])]
    warm = settings(temperature=1.0, top_p=1.0, max_frames=1)
    first, again, other = (
        [speech.ids for speech in generate(model, prompts, warm, seed, ALONE)] for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert first[0] != first[1]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_training_does_not_notice(model, temperature):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state, saved = torch.get_rng_state(), model.config.to_dict()
    attention = model.config._attn_implementation
    generate(model, [PROMPT], settings(temperature=temperature, max_frames=1), 5, ALONE)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert model.config.to_dict() == saved
    assert model.config.use_cache is False
    assert model.config._attn_implementation == attention
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # dynamo's own
def test_nothing_is_compiled_to_speak():
    compiled = []

    def count(graph, _):
        compiled.append(graph)
        return graph.forward

    model = build_model(config_for()).train()
    expected = generate(model, [PROMPT], settings(), 0, ALONE)
    for layer in model.model.layers:
        layer.compile(backend=count)
    model(input_ids=torch.arange(8).view(1, -1))
    assert len(compiled) == 1
    assert generate(model, [PROMPT], settings(), 0, ALONE) == expected
    model(input_ids=torch.arange(8).view(1, -1))
    assert len(compiled) == 1


def test_a_base_models_own_sampling_does_not_count(model):
    (expected,) = generate(model, [PROMPT], settings(max_frames=1), 0, ALONE)
    own = model.generation_config
    own.do_sample, own.temperature, own.top_p = True, 5.0, 0.5
    own.no_repeat_ngram_size, own.eos_token_id = 0, expected.ids[2]
    try:
        (found,) = generate(model, [PROMPT], settings(max_frames=1), 0, ALONE)
    finally:
        own.do_sample, own.temperature, own.top_p, own.eos_token_id = False, None, None, None
    assert found == expected


def test_a_model_without_the_ids_is_refused():
    small = build_model(config_for().model_copy(update={"tiny": TinyModelConfig(vocab_size=512)}))
    with pytest.raises(
        ConfigError, match=r"has 512 embeddings.*needs 156,938.*evaluation.prompts: 0"
    ):
        generate(small, [PROMPT], settings(), 0, ALONE)
    assert generate(small, [], settings(), 0, ALONE) == []
    assert small.training


@pytest.mark.parametrize(
    ("ids", "expected", "num_valid"),
    [
        ([], Grammar(0, 0, 0.0, False), 0),
        ([END_OF_SPEECH], Grammar(0, 0, 0.0, True), 0),
        (whole(3), Grammar(3, 3, 1.0, False), 3),
        ([*whole(3), END_OF_SPEECH], Grammar(3, 3, 1.0, True), 3),
        ([*whole(2), END_OF_SPEECH, END_OF_AI, 7], Grammar(2, 2, 1.0, True), 2),
        (whole(2)[:-1], Grammar(2, 1, 0.5, False), 1),
        ([*whole(2)[:-1], END_OF_SPEECH], Grammar(2, 1, 0.5, True), 1),
        ([*whole(1), 5, *whole(2)[8:], *whole(1)], Grammar(3, 2, 2 / 3, False), 1),
        (whole(2)[1:], Grammar(2, 0, 0.0, False), 0),  # all one slot late
        ([128265, *whole(1)[1:]], Grammar(1, 0, 0.0, False), 0),
        ([*whole(1)[:-1], 156938], Grammar(1, 0, 0.0, False), 0),
    ],
)
def test_grammar(ids, expected, num_valid):
    assert grammar(ids) == expected
    codes = valid_codes(ids)
    assert codes.dtype == np.uint16
    assert audio_ids(codes).tolist() == ids[: num_valid * SLOTS]
