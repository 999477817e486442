"""Search in text by Postgres alone, for when no replica keeps BM25. Knows nothing of vectors.

sql/migrations/0005_search.sql says how words are weighed and why a function does it. A question of common words reads
the words of every text that holds one of them.
"""

from __future__ import annotations

import numpy as np
from psycopg import Connection
from psycopg.sql import SQL

from ruvllm.memory.filters import Filter
from ruvllm.memory.records import Found
from ruvllm.memory.retrieval.search import PLAIN, conditions

# OFFSET 0 keeps the sort below the filter, which is asked of the best nodes only, one after the other.
_WORDS = SQL("""
    SELECT f.node, f.score
    FROM (SELECT node, score FROM memory.word_scores(%(question)s) ORDER BY score DESC, node OFFSET 0) AS f
    WHERE (SELECT true FROM memory.nodes n WHERE n.id = f.node AND {where})
    ORDER BY f.score DESC, f.node LIMIT %(k)s
""")


def search_words(connection: Connection, question: str, k: int, filter: Filter = PLAIN) -> Found:
    """Up to `k` nodes that share a word with `question`, the best first; similarities are scores over 0."""
    where, values = conditions(filter)
    values |= {"question": question, "k": k}
    found = connection.cursor(binary=True).execute(_WORDS.format(where=where), values).fetchall()
    ids, scores = zip(*found, strict=True) if found else ((), ())
    return Found(np.array(ids, dtype=np.int64), np.array(scores, dtype=np.float32))
