"""Where a gallery lies: SQLite and PostgreSQL, the rows in them, and keys."""
