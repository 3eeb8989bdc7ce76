"""Exact search in memory, and on a server; which vectors are kept for it; how memory follows the log."""
