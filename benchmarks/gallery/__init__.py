"""The gallery's speed, memory and recall: exact in memory beside others, and on a PostgreSQL server."""
