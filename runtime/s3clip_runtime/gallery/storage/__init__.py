"""Where a gallery lies: SQLite and PostgreSQL, the rows in them, copies, models and keys."""
