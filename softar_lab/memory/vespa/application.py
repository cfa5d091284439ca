"""A Vespa application for a memory: its schema, its rank profiles, and what must be true of them.

pyvespa writes what it is given. Of two fields of one name the later wins, a metric that does not
exist is written, and a dotted name, too. So all of that is checked here.
"""

import re
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from .tensors import TensorType

NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
RESERVED = {"attribute", "document", "field", "id", "index", "input", "schema", "summary", "type"}
METRICS = {"l2": "euclidean", "dot": "dotproduct", "cosine": "angular"}
# What the profile "dense" ranks by. `score_of` gives the lab's score.
_CLOSE = {
    "l2": "0 - distance(field, dense)",
    "dot": "closeness(field, dense)",
    "cosine": "cos(distance(field, dense))",
}
_MAX_SIM = "sum(reduce(sum(query(qt) * attribute(multi), d), max, t), qt)"


def pyvespa() -> ModuleType:
    """The module vespa.package.

    Raises:
        ImportError: where pyvespa is missing, saying how to install it.
    """
    try:
        import vespa.package
    except ImportError as error:
        raise ImportError('pyvespa is missing: pip install "softar-lab[memory]"') from error
    return vespa.package


def score_of(metric: str, relevance: float) -> float:
    """The lab's score of a hit: the squared distance, the inner product or the cosine."""
    return relevance * relevance if metric == "l2" else relevance


def package(name: str, width: int, metric: str, encodings: Sequence[str]) -> Any:
    """The application of a memory, a pyvespa ApplicationPackage.

    Args:
        name: of the application and its document type; letters, digits and underscores.
        width: of the vectors.
        metric: "l2", "dot" or "cosine".
        encodings: which of "sparse" and "multi" the documents have besides "dense".

    Raises:
        ValueError: where a name or a type is none that Vespa takes.
    """
    vespa, kinds = pyvespa(), tensor_types(width)
    held = ["attribute", "summary"]
    fields = [
        vespa.Field("number", "long", indexing=held),
        vespa.Field("text", "string", indexing=["index", "summary"], index="enable-bm25"),
        vespa.Field("payload", "string", indexing=["summary"]),
        vespa.Field(
            "dense",
            str(kinds["dense"]),
            indexing=["attribute", "index", "summary"],
            ann=vespa.HNSW(METRICS[metric], 16, 200),
        ),
    ]
    fields += [vespa.Field(one, str(kinds[one]), indexing=held) for one in encodings]
    document = vespa.Document(fields=checked_fields(fields))
    schema = vespa.Schema(name, document, rank_profiles=_profiles(width, metric, encodings))
    return vespa.ApplicationPackage(checked_name("application", name), schema=[schema])


def tensor_types(width: int) -> dict[str, TensorType]:
    """The tensor type of each encoding."""
    return {
        "dense": TensorType.parse(f"tensor<float>(d[{width}])"),
        "sparse": TensorType.parse("tensor<float>(w{})"),
        "multi": TensorType.parse(f"tensor<float>(t{{}},d[{width}])"),
    }


def _profiles(width: int, metric: str, encodings: Sequence[str]) -> list[Any]:
    """One rank profile for each encoding, and one that fuses words and vectors."""
    vespa, fused = pyvespa(), "reciprocal_rank(words) + reciprocal_rank(near)"
    dense = ("query(q)", f"tensor<float>(d[{width}])")
    near = vespa.Function("near", _CLOSE[metric])
    profiles = [
        vespa.RankProfile("dense", _CLOSE[metric], inputs=[dense]),
        vespa.RankProfile("words", "bm25(text)"),
        vespa.RankProfile(
            "hybrid",
            "near",
            inputs=[dense],
            functions=[near, vespa.Function("words", "bm25(text)")],
            global_phase=vespa.GlobalPhaseRanking(fused),
            match_features=["near", "words"],
        ),
    ]
    if "sparse" in encodings:
        terms = ("query(qs)", "tensor<float>(w{})")
        profile = vespa.RankProfile("sparse", "sum(query(qs) * attribute(sparse))", inputs=[terms])
        profiles.append(profile)
    if "multi" in encodings:
        tokens = ("query(qt)", f"tensor<float>(qt{{}},d[{width}])")
        phase = vespa.SecondPhaseRanking(_MAX_SIM)
        profiles.append(
            vespa.RankProfile("multi", _CLOSE[metric], inputs=[dense, tokens], second_phase=phase)
        )
    return checked_profiles(profiles)


def checked_name(what: str, name: str) -> str:
    """The name, where Vespa takes it.

    Raises:
        ValueError: for anything else than letters, digits and underscores, and for reserved words.
    """
    if not NAME.fullmatch(name) or name in RESERVED or len(name) > 40:
        raise ValueError(f"the {what} {name!r} must be letters, digits and _, not a reserved word")
    return name


def checked_fields(fields: Sequence[Any]) -> list[Any]:
    """Fields of pyvespa, where Vespa would take them as they are meant.

    Raises:
        ValueError: for a name that is none or is there twice, a tensor type that is none, an
            unknown metric, or an HNSW index of what has no one indexed dimension.
    """
    _distinct("field", [field.name for field in fields])
    for field in fields:
        if field.type.startswith("tensor"):
            kind = TensorType.parse(field.type)
            if str(kind) != field.type:
                raise ValueError(f"field {field.name!r}: write {kind}, the order the engine has")
        if field.ann is None:
            continue
        if field.ann.distance_metric not in METRICS.values():
            known = ", ".join(METRICS.values())
            metric = field.ann.distance_metric
            raise ValueError(f"field {field.name!r}: unknown metric {metric!r}; known: {known}")
        if "index" not in field.indexing or not kind.indexed:
            raise ValueError(f"field {field.name!r}: HNSW needs `index` and an indexed dimension")
    return list(fields)


def checked_profiles(profiles: Sequence[Any]) -> list[Any]:
    """Rank profiles of pyvespa, each with a name of its own.

    Raises:
        ValueError: for a name that is none or is there twice.
    """
    _distinct("rank profile", [profile.name for profile in profiles])
    return list(profiles)


def _distinct(what: str, names: Sequence[str]) -> None:
    for name in names:
        checked_name(what, name)
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"the {what} {twice[0]!r} is there twice: the later one would win")
