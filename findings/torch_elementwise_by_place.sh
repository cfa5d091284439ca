#!/usr/bin/env bash
# torch 2.13.0 (CPU, x86-64): gelu, sigmoid, silu, mish, softplus, logaddexp and atan2 of a number depend, in the last
# bit, on where in the tensor the number stands. Blocks as wide as a vector register go through one implementation, what
# is left over at the end of a tensor through another. So f(x)[i] != f(x[i:i+1]) for up to half of all numbers, and a
# row's activations change with the size of its batch unless its width is a multiple of the register's. exp, log1p,
# tanh and erfinv treat the rest like the blocks: equal for every number.
#
# Seen with torch 2.13.0+cpu on an AMD processor with AVX-512, of 1,000 numbers: gelu 467, mish 383, atan2 142,
# softplus 134, logaddexp 89, sigmoid 61, silu 59 differ; exp, log1p, tanh, erfinv 0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==2.13.0" "numpy<3"
"$folder/venv/bin/python" - <<'PY'
import torch
from torch.nn import functional as F

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
a, b = (-3 * torch.rand(1000, generator=generator) for _ in range(2))
by_place = {
    "gelu": lambda a, b: F.gelu(a), "mish": lambda a, b: F.mish(a), "silu": lambda a, b: F.silu(a),
    "sigmoid": lambda a, b: a.sigmoid(), "softplus": lambda a, b: F.softplus(a), "logaddexp": torch.logaddexp,
    "atan2": torch.atan2,
}
everywhere_alike = {
    "exp": lambda a, b: a.exp(), "log1p": lambda a, b: (a / 4).log1p(), "tanh": lambda a, b: a.tanh(),
    "erfinv": lambda a, b: (a / 4).erfinv(),
}

def differ(f):
    alone = torch.cat([f(a[i : i + 1], b[i : i + 1]) for i in range(1000)])
    return int((f(a, b) != alone).sum())

print(torch.__version__, torch.backends.cpu.get_cpu_capability())
for name, f in (by_place | everywhere_alike).items():
    print(f"{name:10} {differ(f):4} of 1000 numbers differ from themselves alone")
assert all(differ(f) > 0 for f in by_place.values()), "torch now gives a number the same value wherever it stands"
assert all(differ(f) == 0 for f in everywhere_alike.values())
PY
