"""Exact search in memory, which vectors are kept for it, and how memory follows the database."""
