"""Asks llama.cpp's Python package about GGUF files; run as a script: `probe_llama_cpp.py REQUEST RESULT`."""

import json
import sys
from pathlib import Path

import numpy as np
from llama_cpp import Llama


def computed(path: str, ids: list[int]) -> np.ndarray:
    """Return the logits of every token, [tokens, vocabulary]."""
    exact = {"type_k": 0, "type_v": 0}  # FP32; by default the cache is FP16
    model = Llama(path, n_ctx=512, logits_all=True, n_threads=1, verbose=False, **exact)
    model.eval(ids)
    return np.array(model.scores[: len(ids)])


def main(request_path: str, result_path: str) -> None:
    request = json.loads(Path(request_path).read_text("utf-8"))
    model = Llama(request["file"], n_ctx=512, n_threads=1, verbose=False)
    messages = [{"role": "user", "content": request["asked"]}]
    answer = model.create_chat_completion(messages, temperature=0.0, max_tokens=100)["choices"][0]
    result = {
        "special": [model.token_bos(), model.token_eos()],
        "ids": [
            model.tokenize(text.encode(), add_bos=True, special=True) for text in request["texts"]
        ],
        "answer": answer["message"]["content"],
        "reason": answer["finish_reason"],
    }
    arrays = {name: computed(path, request["input"]) for name, path in request["logits"].items()}
    np.savez(result_path, result=json.dumps(result), **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
