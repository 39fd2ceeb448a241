"""The same adapter made with peft alone, and its loss document by document."""

import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import LlamaForCausalLM

from training.data.batches import IGNORED
from training.model.llama import build_model


def peft_twin(config, ours):
    """Build the same model with peft alone, from the same initial weights."""
    plain = build_model(config.model_copy(update={"adapter": None}))
    bare = LlamaForCausalLM(plain.config)
    bare.load_state_dict(plain.state_dict())
    settings = config.adapter
    twin = get_peft_model(
        bare,
        LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            use_rslora=settings.rank_stabilised,
            target_modules=settings.targets,
            modules_to_save=["embed_tokens"],
            ensure_weight_tying=True,
            task_type="CAUSAL_LM",
        ),
    )
    found = dict(twin.named_parameters())
    with torch.no_grad():
        for name, weight in ours.named_parameters():
            if ".lora_" in name:
                found[f"base_model.model.{name}"].copy_(weight)
    return twin.train()


def documents_of(batch):
    """Cut a batch into its documents: pairs of ids and labels, [1, tokens] each."""
    for row in range(len(batch.input_ids)):
        for number in range(int(batch.document_index[row].max()) + 1):
            here = batch.document_index[row] == number
            yield batch.input_ids[row, here][None], batch.labels[row, here][None]


def mean_loss(model, batch):
    total = torch.zeros(())
    for ids, labels in documents_of(batch):
        logits = model(input_ids=ids).logits[0, :-1]
        total = total + functional.cross_entropy(
            logits, labels[0, 1:], ignore_index=IGNORED, reduction="sum"
        )
    return total / batch.num_supervised
