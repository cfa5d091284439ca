"""What approximate engines and half precision lose among soft tokens, measured against exact search.

Each engine is used as its package's own example does, with its default parameters; what is not a
default is part of its name here.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from softar_lab.memory import VectorMemory

from .retrieval import measured

WIDTH, ROWS, QUERIES, K = 64, 50_000, 1000, 10
METRICS = ("l2", "cosine", "dot")
Search = Callable[[np.ndarray], np.ndarray]  # queries (Q, m) -> ids (Q, k)


def soft_tokens(n: int, seed: int, table_seed: int = 0) -> Float32[Tensor, "n m"]:
    """Mixtures of at most three of 64 rows; half of them are copies of others with a little noise."""
    table = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(table_seed))
    generator = torch.Generator().manual_seed(seed)
    fresh = n - n // 2
    weights = torch.rand(fresh, 3, generator=generator)
    weights = weights / weights.sum(-1, keepdim=True)
    picks = torch.randint(len(table), (fresh, 3), generator=generator)
    rows = torch.einsum("nk,nkm->nm", weights, table[picks])  # (n/2, m)
    noise = 1e-4 * torch.randn(n // 2, WIDTH, generator=generator)
    return torch.cat([rows, rows[: n // 2] + noise])


def brute_force(kind: torch.dtype) -> Callable[[Tensor, str], Search]:
    """Exact search among rows and queries that were rounded to a type."""

    def make(rows: Tensor, metric: str) -> Search:
        memory = VectorMemory(WIDTH, metric)
        memory.add(rows.to(kind).float())
        return lambda queries: memory.search(
            torch.from_numpy(queries).to(kind).float(), K
        ).ids.numpy()

    return make


def hnswlib(ef: int | None = None) -> Callable[[Tensor, str], Search]:
    """hnswlib with links M = 16 and a construction list of 200; ef = 10 unless another is given."""

    def make(rows: Tensor, metric: str) -> Search:
        import hnswlib as library

        space = {"l2": "l2", "cosine": "cosine", "dot": "ip"}[metric]
        index = library.Index(space, WIDTH)
        index.init_index(len(rows))
        index.set_num_threads(1)
        index.add_items(rows.numpy())
        if ef is not None:
            index.set_ef(ef)
        return lambda queries: index.knn_query(queries, K)[0].astype(np.int64)

    return make


def usearch(dtype: str | None = None, exact: bool = False) -> Callable[[Tensor, str], Search]:
    """usearch; the default type is the processor's choice, bfloat16 where it has that."""

    def make(rows: Tensor, metric: str) -> Search:
        from usearch.index import Index

        space = {"l2": "l2sq", "cosine": "cos", "dot": "ip"}[metric]
        index = Index(ndim=WIDTH, metric=space, dtype=dtype)
        index.add(np.arange(len(rows)), rows.numpy(), threads=1)

        def search(queries: np.ndarray) -> np.ndarray:
            found = index.search(queries, K, exact=exact, threads=1)
            return found.keys.astype(np.int64)

        return search

    return make


def voyager(rows: Tensor, metric: str) -> Search:
    """voyager in float32."""
    from voyager import Index, Space

    space = {"l2": Space.Euclidean, "cosine": Space.Cosine, "dot": Space.InnerProduct}[metric]
    index = Index(space, num_dimensions=WIDTH)
    index.add_items(rows.numpy(), num_threads=1)
    return lambda queries: index.query(queries, K, num_threads=1)[0].astype(np.int64)


def annoy(rows: Tensor, metric: str) -> Search:
    """annoy with ten trees, as in its README."""
    from annoy import AnnoyIndex

    space = {"l2": "euclidean", "cosine": "angular", "dot": "dot"}[metric]
    index = AnnoyIndex(WIDTH, space)
    index.set_seed(1)
    for number, row in enumerate(rows.tolist()):
        index.add_item(number, row)
    index.build(10, n_jobs=1)

    def search(queries: np.ndarray) -> np.ndarray:
        found = [index.get_nns_by_vector(query, K) for query in queries.tolist()]
        return np.array([ids + [-1] * (K - len(ids)) for ids in found])

    return search


def faiss(factory: str) -> Callable[[Tensor, str], Search]:
    """An index of faiss by its factory's name; for cosines rows and queries are normalised."""

    def make(rows: Tensor, metric: str) -> Search:
        import faiss as library

        library.omp_set_num_threads(1)
        kind = library.METRIC_L2 if metric == "l2" else library.METRIC_INNER_PRODUCT
        index = library.index_factory(WIDTH, factory, kind)
        index.train(normal(rows.numpy(), metric))
        index.add(normal(rows.numpy(), metric))
        return lambda queries: index.search(normal(queries, metric), K)[1]

    def normal(vectors: np.ndarray, metric: str) -> np.ndarray:
        if metric != "cosine":
            return vectors
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return make


# name: (package, dtype, how to make it)
ENGINES = {
    "exact": ("", "float32", brute_force(torch.float32)),
    "rows in float16": ("", "float16", brute_force(torch.float16)),
    "rows in bfloat16": ("", "bfloat16", brute_force(torch.bfloat16)),
    "faiss Flat": ("faiss-cpu", "float32", faiss("Flat")),
    "faiss SQfp16": ("faiss-cpu", "float16", faiss("SQfp16")),
    "faiss HNSW32": ("faiss-cpu", "float32", faiss("HNSW32,Flat")),
    "faiss IVF256, nprobe 1": ("faiss-cpu", "float32", faiss("IVF256,Flat")),
    "hnswlib": ("hnswlib", "float32", hnswlib()),
    "hnswlib, ef 100": ("hnswlib", "float32", hnswlib(100)),
    "usearch": ("usearch", "its default", usearch()),
    "usearch, exact=True": ("usearch", "its default", usearch(exact=True)),
    "usearch, f32": ("usearch", "float32", usearch("f32")),
    "voyager": ("voyager", "float32", voyager),
    "annoy, 10 trees": ("annoy", "float32", annoy),
}


def lost(engine: str, metric: str, seed: int = 0) -> list[dict[str, object]]:
    """One row: which share of the exact ten closest an engine finds, with its interval."""
    rows, queries = soft_tokens(ROWS, 2 * seed), soft_tokens(QUERIES, 2 * seed + 1)
    memory = VectorMemory(WIDTH, metric)
    memory.add(rows)
    wanted = memory.search(queries, K).ids.tolist()
    found = ENGINES[engine][2](rows, metric)(queries.numpy()).tolist()
    shares = [len({*ids} & {*right}) / K for ids, right in zip(found, wanted, strict=True)]
    return [measured(f"neighbours of {K}", np.array(shares))]
