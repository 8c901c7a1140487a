"""Names and numbers of the delta file, docs/format.md. Nothing here is typed a second time elsewhere."""

from __future__ import annotations

import re
from typing import Final

VERSION_PLAIN: Final = 1
VERSION_SIGN_FACTORS: Final = 2  # sign factors, weights with factors and no plane, and sparse weights
ALIGNMENT: Final = 64  # bytes; a cache line, and what AVX-512 loads without a split
MAX_PLANES: Final = 4
MAX_CODE_PLANES: Final = 8  # of a singular vector
MAX_CODES_A_SIDE: Final = 4  # codes a weight has at most, times its smaller side: work memory is planned for them
MAX_ENTRIES: Final = (1 << 31) - 1  # of a sparse weight: indices are I32
BLOCK_COLUMNS: Final = 256  # Columns of a block of the lists of places: a column inside it is a byte.
MAX_HEADER_BYTES: Final = 64 << 20
MAX_OPTIONS_DEPTH: Final = 32  # objects and lists of the options in one another, the outermost included
MAX_NAME_BYTES: Final = 63  # GGML_MAX_NAME is 64 with the terminator
SUFFIX: Final = ".dq.gguf"  # of a delta file's name

GENERAL_TYPE: Final = "adapter"
ADAPTER_TYPE: Final = "dqrelo"
REFERENCE_BASE: Final = "base"

# --- metadata keys ---

KEY_GENERAL_TYPE: Final = "general.type"
KEY_ARCHITECTURE: Final = "general.architecture"
KEY_ALIGNMENT: Final = "general.alignment"
KEY_NAME: Final = "general.name"
KEY_LICENSE: Final = "general.license"
KEY_ADAPTER_TYPE: Final = "adapter.type"
KEY_VERSION: Final = "dqrelo.version"
KEY_METHOD: Final = "dqrelo.method"
KEY_CONVERTER: Final = "dqrelo.converter"
KEY_OPTIONS: Final = "dqrelo.options"
KEY_RATIO: Final = "dqrelo.ratio"
KEY_CONTENT_HASH: Final = "dqrelo.content_hash"
KEY_REFERENCE: Final = "dqrelo.reference"
KEY_TENSOR_NAMES: Final = "dqrelo.tensor.names"
KEY_TENSOR_TYPES: Final = "dqrelo.tensor.types"
KEY_TENSOR_NE: Final = "dqrelo.tensor.ne"
KEY_TENSOR_SHA256: Final = "dqrelo.tensor.sha256"
KEY_WEIGHT_NAMES: Final = "dqrelo.weight.names"
KEY_WEIGHT_NE: Final = "dqrelo.weight.ne"
KEY_WEIGHT_RANK: Final = "dqrelo.weight.rank"
KEY_WEIGHT_N_PLANES: Final = "dqrelo.weight.n_planes"
KEY_WEIGHT_PLANE_RANKS: Final = "dqrelo.weight.plane_ranks"
KEY_WEIGHT_N_ENTRIES: Final = "dqrelo.weight.n_entries"
KEY_WEIGHT_ERROR_DELTA: Final = "dqrelo.weight.error_delta"
KEY_WEIGHT_ERROR_WEIGHT: Final = "dqrelo.weight.error_weight"
KEY_BASE_NAME: Final = "dqrelo.base.name"
KEY_BASE_DIGEST: Final = "dqrelo.base.digest"
KEY_BASE_SAMPLE_TENSORS: Final = "dqrelo.base.sample_tensors"
KEY_BASE_SAMPLES: Final = "dqrelo.base.samples"
KEY_CHAT_TEMPLATE: Final = "tokenizer.chat_template"
PREFIX_CHAT_TEMPLATE: Final = "tokenizer.chat_template."  # of a named template's key
KEY_CHAT_TEMPLATES: Final = "tokenizer.chat_templates"
KEY_TOOL_USE: Final = f"{PREFIX_CHAT_TEMPLATE}tool_use"  # the one that llama.cpp asks for
MAX_TEMPLATES: Final = 64
TEMPLATE_NAME: Final = re.compile(r"[A-Za-z0-9_]{1,64}")  # as gguf's writer makes it
EOS_ID_KEY: Final = "tokenizer.ggml.eos_token_id"  # one of TOKEN_ID_KEYS
KEY_END_TOKENS: Final = "dqrelo.end_token_ids"
MAX_END_TOKENS: Final = 64  # The runtime compares each token with all of them.
KEY_ADD_BOS: Final = "tokenizer.ggml.add_bos_token"
KEY_ADD_EOS: Final = "tokenizer.ggml.add_eos_token"
TOKEN_ID_KEYS: Final = tuple(f"tokenizer.ggml.{role}_token_id" for role in ("bos", "eos", "eot", "eom", "padding"))

MODEL_TOKENS: Final = "tokenizer.ggml.tokens"  # The key is a model's, not a delta's.

KEY_CHANGED_IDS: Final = "dqrelo.token.ids"
KEY_CHANGED_TEXTS: Final = "dqrelo.token.texts"
KEY_CHANGED_TYPES: Final = "dqrelo.token.types"

# --- sampling defaults: the values that each may have ---

KEY_SAMPLERS: Final = "general.sampling.sequence"
MAX_SAMPLERS: Final = 32  # llama.cpp has eleven; each of the list is made for every request.
SAMPLING_NUMBERS: Final = {
    "general.sampling.top_k": (-1, 1e9),
    "general.sampling.top_p": (0, 1),
    "general.sampling.min_p": (0, 1),
    "general.sampling.xtc_probability": (0, 1),
    "general.sampling.xtc_threshold": (0, 1),
    "general.sampling.temp": (-1, 1000),
    "general.sampling.penalty_last_n": (-1, 1 << 20),
    "general.sampling.penalty_repeat": (0.001, 1000),
    "general.sampling.mirostat": (0, 2),
    "general.sampling.mirostat_tau": (0, 1000),
    "general.sampling.mirostat_eta": (0, 1000),
}

# --- declared tensor types, and the suffixes of the tensors that have them ---

DQ_SIGN: Final = "DQ_SIGN"
DQ_SCALE: Final = "DQ_SCALE"
DQ_CSCALE: Final = "DQ_CSCALE"
DQ_U: Final = "DQ_U"
DQ_V: Final = "DQ_V"
DQ_VSIGN: Final = "DQ_VSIGN"
DQ_VSCALE: Final = "DQ_VSCALE"
DQ_USIGN: Final = "DQ_USIGN"
DQ_USCALE: Final = "DQ_USCALE"
DQ_MASK: Final = "DQ_MASK"
DQ_COUNT: Final = "DQ_COUNT"
DQ_COLUMN: Final = "DQ_COLUMN"
DQ_START: Final = "DQ_START"
DQ_ENTRY: Final = "DQ_ENTRY"
DQ_ESCALE: Final = "DQ_ESCALE"
DQ_DENSE: Final = "DQ_DENSE"

SUFFIX_CSCALE: Final = ".dq_cscale"
SUFFIX_U: Final = ".dq_u"
SUFFIX_V: Final = ".dq_v"
SUFFIX_VSIGN: Final = ".dq_vsign"
SUFFIX_VSCALE: Final = ".dq_vscale"
SUFFIX_USIGN: Final = ".dq_usign"
SUFFIX_USCALE: Final = ".dq_uscale"
SUFFIX_MASK: Final = ".dq_mask"
SUFFIX_COUNT: Final = ".dq_count"
SUFFIX_COLUMN: Final = ".dq_column"
SUFFIX_START: Final = ".dq_start"
SUFFIX_ENTRY: Final = ".dq_entry"
SUFFIX_ESCALE: Final = ".dq_escale"
SUFFIX_DENSE: Final = ".dq_dense"


def suffix_sign(plane: int) -> str:
    """`.dq_sign` of plane 0, `.dq_sign1` of plane 1, ..."""
    return f".dq_sign{plane or ''}"


def suffix_scale(plane: int) -> str:
    """`.dq_scale` of plane 0, `.dq_scale1` of plane 1, ..."""
    return f".dq_scale{plane or ''}"


# --- base identity, section 6 ---

DIGEST_CHUNKS: Final = 8
DIGEST_CHUNK_BYTES: Final = 64
SAMPLE_TENSORS: Final = 16
SAMPLES_PER_TENSOR: Final = 32
SAME_MODEL_CORRELATION: Final = 0.90
