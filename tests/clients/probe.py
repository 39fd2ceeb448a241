"""Loads exports with whatever release of transformers it finds, and writes what came of it.

Run as a script by other releases, so it imports nothing of koe: `probe.py REQUESTS RESULTS`.
"""

import json
import sys
from pathlib import Path

import torch
import transformers


def of_model(folder: str, ids: list[int], columns: list[int]) -> dict:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, torch_dtype="auto").eval()
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0][:, columns]
    return {"dtype": str(model.dtype), "logits": logits.tolist()}


def of_tokenizer(folder: str, texts: list[str], to_decode: list[list[int]], chats: list) -> dict:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return {
        "class": type(tokenizer).__name__,
        "special": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
        "num_ids": len(tokenizer),
        "ids": [tokenizer(text).input_ids for text in texts],
        "decoded": [tokenizer.decode(ids, skip_special_tokens=True) for ids in to_decode],
        "chats": [
            tokenizer(
                tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False),
                add_special_tokens=False,
            ).input_ids
            for chat in chats
        ],
    }


def of_generation(folder: str) -> dict:
    found = transformers.GenerationConfig.from_pretrained(folder)
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "do_sample", "temperature", "top_p")
    return {name: getattr(found, name) for name in names}


KINDS = {"model": of_model, "tokenizer": of_tokenizer, "generation": of_generation}


def main(requests_path: str, results_path: str) -> None:
    requests = json.loads(Path(requests_path).read_text("utf-8"))
    results = [KINDS[request.pop("kind")](**request) for request in requests]
    found = {"version": transformers.__version__, "results": results}
    Path(results_path).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
