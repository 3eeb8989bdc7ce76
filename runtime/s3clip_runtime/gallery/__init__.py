"""Identities: prototypes in memory and in one SQLite file."""
