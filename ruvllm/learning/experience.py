"""The replay reservoir of answers from traffic: a uniform sample of bounded size (learning.experience).

Knows nothing of training. Each answer gets a priority from a hash of its uuid once; those with the lowest priorities
stay (bottom-k sampling, Cohen and Kaplan 2007), so that an answer that is offered twice is not counted twice.
"""

from __future__ import annotations

from psycopg import Connection

CAPACITY = 5000  # experiences of a tenant that are kept

_KEEP = """
    INSERT INTO learning.experience (interaction, tenant, priority)
    SELECT i.id, i.tenant, hashtextextended(i.uuid::text, 0) FROM serving.interactions i WHERE i.id = %(interaction)s
    ON CONFLICT (interaction) DO NOTHING
"""
_TRIM = """
    DELETE FROM learning.experience WHERE tenant = current_setting('app.tenant') AND priority >= (
        SELECT priority FROM learning.experience WHERE tenant = current_setting('app.tenant')
        ORDER BY priority OFFSET %(capacity)s LIMIT 1)
"""


def keep_experience(connection: Connection, interaction: int, capacity: int = CAPACITY) -> None:
    """Offer an answer whose quality is known to the replay reservoir, in the caller's transaction.

    Every answer so far is kept with the same probability.
    """
    connection.execute(_KEEP, {"interaction": interaction})
    connection.execute(_TRIM, {"capacity": capacity})
