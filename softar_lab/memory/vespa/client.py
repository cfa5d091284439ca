"""VespaMemory: the interface of VectorMemory, served by Vespa (K18).

A request that was answered is not one that was done: a search may come back with errors, from a
part of the documents, or from an address that does not exist, and a document may be lost without a
word. All of that is a failure here.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.checks import whole_number
from ..parts import METRICS as SCORES
from ..vector_memory import Found
from .application import METRICS, checked_name, score_of
from .feed import document
from .tensors import TensorType

MOST = 400  # hits per search; beyond them an engine with its defaults answers with an error


class VespaFailure(RuntimeError):
    """What an engine did not do; `report` says what arrived of a feed."""

    report: "FeedReport | None" = None


@dataclass
class FeedReport:
    """What became of the documents of a feed.

    Args:
        stored: the ids that the engine has taken.
        failed: id -> status and reason.
        unheard: ids of which nothing was heard.
    """

    stored: list[int] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    unheard: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        reasons = [f"id {one}: {why}" for one, why in list(self.failed.items())[:3]]
        reasons += [f"id {one}: no answer" for one in self.unheard[:3]]
        total = len(self.stored) + len(self.failed) + len(self.unheard)
        return f"{len(self.stored)} of {total} documents stored" + "".join(
            f"; {reason}" for reason in reasons
        )


class VespaMemory:
    """Vectors in a Vespa application that `to_vespa` wrote.

    Args:
        url: of the engine's container, such as http://localhost:8080.
        width: of the vectors.
        metric: as for `VectorMemory`, and as the application was written with.
        name: of the application's document type.
        cert: the client's certificate, where the engine wants one.
        key: its key.

    Raises:
        ValueError: for a name, width or metric that is none.
        ImportError: where pyvespa is missing.
    """

    def __init__(
        self,
        url: str,
        width: int,
        metric: str = "l2",
        name: str = "memory",
        cert: str | None = None,
        key: str | None = None,
    ):
        try:
            from vespa.application import Vespa
        except ImportError as error:
            raise ImportError('pyvespa is missing: pip install "softar-lab[memory]"') from error
        if metric not in METRICS:
            raise ValueError(f"unknown metric {metric!r}; known: {', '.join(METRICS)}")
        self.width, self.metric = whole_number("width", width), metric
        self.name = checked_name("document type", name)
        self.url, self._app = url, Vespa(url=url, cert=cert, key=key)
        self._kind = TensorType.parse(f"tensor<float>(d[{width}])")

    def __repr__(self) -> str:
        return f"VespaMemory({self.url!r}, width={self.width}, metric={self.metric!r})"

    def add(
        self,
        vectors: Tensor | np.ndarray,
        payloads: Iterable[Any] | None = None,
        *,
        ids: Iterable[int],
        sparse: Iterable[Mapping[str, float]] | None = None,
        multi: Iterable[Tensor] | None = None,
    ) -> FeedReport:
        """Feed vectors with payloads; every document is checked before the first one leaves.

        Args:
            vectors: (N, m).
            payloads: one per vector; None: none.
            ids: one whole number per vector; an id that is there already is replaced.
            sparse, multi: the other encodings, where the application has them.

        Raises:
            ValueError: for a document that the engine would take otherwise than it is meant.
            VespaFailure: where not every document was stored; its `report` says which.
        """
        rows, numbers = torch.as_tensor(vectors), [whole_number("id", one, 0) for one in ids]
        columns = [
            [None] * len(rows) if given is None else list(given)
            for given in (payloads, sparse, multi)
        ]
        if any(len(column) != len(rows) for column in [numbers, *columns]):
            raise ValueError(f"{len(rows)} vectors need as many ids, payloads and encodings")
        if len(set(numbers)) < len(numbers):
            raise ValueError("an id is there twice: the later document would win")
        if rows.dim() != 2 or rows.shape[1] != self.width:
            raise ValueError(f"vectors must be (N, {self.width}), not {tuple(rows.shape)}")
        found = [
            document(number, row, *more, self.metric)
            for number, row, *more in zip(numbers, rows, *columns)
        ]
        return self._feed(found)

    def _feed(self, found: list[dict[str, Any]]) -> FeedReport:
        """Send documents, and count what was heard of them."""
        heard: dict[str, str] = {}

        def hear(response: Any, number: str) -> None:
            heard[number] = "" if response.is_successful() else self._reason(response)

        self._app.feed_iterable(found, schema=self.name, namespace=self.name, callback=hear)
        report = FeedReport()
        for one in found:
            number = int(one["id"])
            if one["id"] not in heard:
                report.unheard.append(number)
            elif heard[one["id"]]:
                report.failed[number] = heard[one["id"]]
            else:
                report.stored.append(number)
        if report.failed or report.unheard:
            failure = VespaFailure(str(report))
            failure.report = report
            raise failure
        return report

    @staticmethod
    def _reason(response: Any) -> str:
        body = response.json
        said = body.get("message") or body.get("Message") if isinstance(body, Mapping) else body
        return f"{response.status_code}: {said or body!r:.200}"

    def search(
        self, queries: Tensor | np.ndarray, k: int = 10, where: Iterable[int] | None = None
    ) -> Found:
        """The k closest vectors to each query, compared exactly by the engine.

        Args:
            queries: (Q, m), or one query (m,).
            k: how many, at most 400.
            where: ids that may be found; None: all.

        Returns:
            As `VectorMemory.search`; equal scores by id, as far as the engine returned them.

        Raises:
            ValueError: for queries of another width, or with NaN or infinity.
            VespaFailure: for any answer but a whole one.
        """
        rows, k = torch.as_tensor(queries), whole_number("k", k, 1, MOST)
        if where is not None:
            allowed = ", ".join(str(whole_number("id", one, 0)) for one in where)
        condition = "" if where is None else f" and number in ({allowed})"
        single = rows.dim() == 1
        found = [self._search(row, k, condition) for row in (rows[None] if single else rows)]
        ids = torch.tensor([[hit[1] for hit in one] for one in found], dtype=torch.int64)
        scores = torch.tensor([[hit[0] for hit in one] for one in found], dtype=torch.float64)
        payloads = [[hit[2] for hit in one] for one in found]
        if single:
            ids, scores, payloads = ids[0], scores[0], payloads[0]
        return Found(ids, scores, payloads, SCORES[self.metric])

    def _search(self, query: Tensor, k: int, condition: str) -> list[tuple[float, int, Any]]:
        """Score, id and payload of each hit, the closest first."""
        nearest = f"{{targetHits:{k}, approximate:false}}nearestNeighbor(dense, q)"
        body = {
            "yql": f"select number, payload from {self.name} where {nearest}{condition}",
            "input.query(q)": self._kind.encode(query),
            "ranking": "dense",
            "hits": k,
        }
        try:
            response = self._app.query(body=body)
        except Exception as error:  # whatever the client makes of an answer that is none
            raise VespaFailure(f"{self.url}: {type(error).__name__}: {error!s:.300}") from error
        hits = [self._hit(hit) for hit in self._whole(response)]
        return sorted(hits, key=lambda hit: (hit[0] if self.metric == "l2" else -hit[0], hit[1]))

    def _whole(self, response: Any) -> list[dict[str, Any]]:
        """The hits of an answer that is whole."""
        root = response.json.get("root", {}) if isinstance(response.json, Mapping) else {}
        if response.status_code != 200 or "fields" not in root:
            raise VespaFailure(f"{self.url}: status {response.status_code}, no result")
        if errors := root.get("errors"):
            raise VespaFailure(f"{self.url}: {errors!r:.300}")
        coverage = root.get("coverage", {})
        if coverage.get("full") is not True:
            raise VespaFailure(f"{self.url}: only {coverage.get('coverage')} % of the documents")
        return root.get("children", [])

    def _hit(self, hit: dict[str, Any]) -> tuple[float, int, Any]:
        relevance, fields = hit.get("relevance"), hit.get("fields", {})
        if not isinstance(relevance, int | float) or not math.isfinite(relevance):
            raise VespaFailure(f"{self.url}: a hit has the relevance {relevance!r}")
        if "number" not in fields:
            raise VespaFailure(f"{self.url}: a hit without its number: is it another application?")
        payload = fields.get("payload")
        payload = None if payload is None else json.loads(payload)
        return score_of(self.metric, float(relevance)), int(fields["number"]), payload
