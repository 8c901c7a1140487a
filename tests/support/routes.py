"""The routes of llama-server and of this project, read from the sources, and who may use them."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.programs import need_llama_cpp

# Endpoints that keep to the names of a key. Every other one is closed to it, and so is one that llama.cpp adds.
OPEN = {
    ("GET", "/deltas"),
    ("GET", "/models"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/.+"),
    ("GET", "/props"),
    ("GET", "/tokenizer_info"),
    ("POST", "/completion"),
    ("POST", "/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/chat/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/responses"),
    ("POST", "/responses"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/audio/transcriptions"),
    ("POST", "/audio/transcriptions"),
    ("POST", "/infill"),
    ("POST", "/embedding"),
    ("POST", "/embeddings"),
    ("POST", "/v1/embeddings"),
    ("POST", "/rerank"),
    ("POST", "/reranking"),
    ("POST", "/v1/rerank"),
    ("POST", "/v1/reranking"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("POST", "/apply-template"),
    ("POST", "/chat/completions/input_tokens"),
    ("POST", "/v1/chat/completions/input_tokens"),
    ("POST", "/responses/input_tokens"),
    ("POST", "/v1/responses/input_tokens"),
    ("POST", "/v1/messages/count_tokens"),
}
PUBLIC = {("GET", "/health"), ("GET", "/v1/health")}  # These are open to everyone, without a key.


def routes() -> set[tuple[str, str]]:
    """Every route that the sources add: (method, path)."""
    root = Path(__file__).resolve().parents[2]
    upstream = need_llama_cpp()
    found = set()
    for path in (upstream / "tools/server/server.cpp", *sorted((root / "cpp/server").glob("*.cpp"))):
        for method, route in re.findall(r'\b(?:ctx_http\.|http\.)?(get|post|del) ?\("(/[^"]*)"', path.read_text()):
            found.add(({"get": "GET", "post": "POST", "del": "DELETE"}[method], route))
    return found
