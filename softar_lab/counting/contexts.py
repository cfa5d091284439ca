"""The counts of an n-gram model: what followed each context of 0 … n tokens (K12)."""

import numpy as np
from jaxtyping import Float64, Int64
from scipy.sparse import coo_array


class ContextCounts:
    """What followed each context of 0 … `order` tokens in some sequences, and how probable it is.

    The number of a context is the index of the context one token shorter, combined with the older
    token that extends it.

    Args:
        ids: the sequences one after the other (N,), blanks between them.
        vocab_size: number of tokens V; V itself is the blank.
        order: length of the longest context.
        smoothed: whether a prediction is mixed with that of the context one token shorter, as
            Witten and Bell do.

    Attributes:
        levels: one tuple per length. Of the U contexts that something follows: their numbers
            (U + 1,), ascending, with a sentinel at the end; the counts of what follows (U, V),
            sparse; the sums of these counts (U,); and how many counts the prediction of the shorter
            context is worth (U,).
    """

    def __init__(self, ids: Int64[np.ndarray, " N"], vocab_size: int, order: int, smoothed: bool):
        self.vocab_size, self.levels = vocab_size, []
        blank, at = vocab_size, np.flatnonzero(ids != vocab_size)  # positions of the tokens
        # the contexts of one length, and which of them precedes each token
        contexts, which = np.zeros(1, np.int64), np.zeros(len(at), np.int64)
        for k in range(order + 1):
            if k:  # extend each context by one older token, within its sequence
                older = ids[at - k]
                at, which, older = (x[older != blank] for x in (at, which, older))
                contexts, which = np.unique(which * (blank + 1) + older, return_inverse=True)
            if not len(at):
                break
            counts = coo_array(
                (np.ones(len(at)), (which, ids[at])), shape=(len(contexts), blank)
            ).tocsr()
            weight = np.diff(counts.indptr) * float(smoothed)
            self.levels.append(
                (np.append(contexts, np.iinfo(np.int64).max), counts, counts.sum(1), weight)
            )

    def probs(
        self, tokens: Int64[np.ndarray, "N n"], targets: Int64[np.ndarray, " N"] | None = None
    ) -> Float64[np.ndarray, "N *V"]:
        """p(x | context) of every token, (N, V), or of one target per context, (N,).

        `tokens` holds the last tokens of each context (N, n). Blanks stand before a row's first
        token and match nothing.
        """
        n, blank = len(tokens), self.vocab_size
        probs = np.full((n, blank) if targets is None else n, 1 / blank)
        # the rows whose context of this length occurred, and which context that is
        rows, which = np.arange(n), np.zeros(n, np.int64)
        for k, (contexts, counts, totals, weight) in enumerate(self.levels):
            if k:
                wanted = which * (blank + 1) + tokens[rows, -k]
                which = np.searchsorted(contexts, wanted)
                rows, which = (x[contexts[which] == wanted] for x in (rows, which))
            count = counts[which].toarray() if targets is None else counts[which, targets[rows]]
            total, w = (x[which, None] if targets is None else x[which] for x in (totals, weight))
            probs[rows] = (count + w * probs[rows]) / (total + w)
        return probs
