#!/usr/bin/env bash
# transformers 5.24.0 loads the first part of a GGUF file that was split into parts, without a word: layers that stand in
# the other parts get random weights, others at each loading. It reads the entry `split.count = 3` and ignores it.
# llama.cpp takes the first part as the name of all parts, so one gives it to other programs, too, and would expect all
# parts to be read, or an error. (The second part alone is refused, because it does not name its architecture.)
#
# Seen, the log-probability of token 7 after tokens 3, 4, 5, loaded twice: whole file -5.1175 and -5.1175; first of three
# parts -4.9586 and -4.9710 (other values at each run); no exception. `missing_keys` of the loading info names the layers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "transformers==5.24.0" "gguf==0.19.0" "accelerate==1.15.0" "torch==2.13.0" "numpy<3"
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PY'
import sys

import numpy as np
import torch
from gguf import GGUFWriter
from transformers import AutoModelForCausalLM
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
width, hidden, rows, layers = 32, 48, 40, 4
shapes = {"token_embd": (rows, width), "output_norm": (width,), "output": (rows, width)}
for i in range(layers):
    shapes |= {f"blk.{i}.{name}": (width, width) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
    shapes |= {f"blk.{i}.{name}": (hidden, width) for name in ("ffn_gate", "ffn_up")}
    shapes |= {f"blk.{i}.ffn_down": (width, hidden), f"blk.{i}.attn_norm": (width,), f"blk.{i}.ffn_norm": (width,)}


def write(path, **split):
    writer, draws = GGUFWriter(path, "llama", **split), np.random.default_rng(0)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(rows)
    for name, shape in shapes.items():
        values = draws.normal(size=shape) * 0.2 if len(shape) > 1 else np.ones(shape)
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def answer(file):
    model = AutoModelForCausalLM.from_pretrained(".", gguf_file=file, dtype=torch.float32)
    with torch.inference_mode():
        return round(float(model(torch.tensor([[3, 4, 5]])).logits[0, -1].log_softmax(-1)[7]), 4)


write("whole.gguf")
write("part.gguf", split_max_tensors=14)
whole = [answer("whole.gguf") for _ in range(2)]
first = [answer("part-00001-of-00003.gguf") for _ in range(2)]
print("whole", whole, "first part", first)
sys.exit(not (whole[0] == whole[1] and len({*whole, *first}) == 3))
PY
