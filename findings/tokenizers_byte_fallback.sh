#!/usr/bin/env bash
# tokenizers 0.23.2, decoder ByteFallback (Llama 2, Mistral, Gemma and every sentencepiece model with byte fallback):
# a run of byte tokens is decoded as a whole. If one byte of it spells nothing, as at the end of a text that is cut off
# in a character, *every* byte of the run becomes U+FFFD, also those of the valid characters before it. So a text that
# grows by a byte loses characters it had, and the length of a text does not grow with its tokens. bytes.decode(…,
# "replace") and the decoder ByteLevel (GPT-2's kind) keep the valid ones.
#
# Seen: "é" is 'é'; "é" and the first byte of "😀" is '\ufffd\ufffd\ufffd', where ByteLevel gives 'é\ufffd'.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-deps "tokenizers==0.23.2"
"$folder/venv/bin/python" - <<'PY'
from tokenizers import decoders

data = "é".encode() + "😀".encode()[:1]
fallback = [f"<0x{byte:02X}>" for byte in data]
whole, cut = (decoders.ByteFallback().decode(fallback[:n]) for n in (2, 3))
level = decoders.ByteLevel().decode(["Ã", "©", "ð"])
print(f"valid {whole!r}, with one more byte {cut!a}; ByteLevel {level!a}; Python {data.decode('utf-8', 'replace')!a}")
assert whole == "é"
assert cut == "\ufffd" * 3, "the valid character now stays"
assert level == data.decode("utf-8", "replace") == "é\ufffd"
PY
