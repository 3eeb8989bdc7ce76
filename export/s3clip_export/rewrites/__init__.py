"""Networks rewritten for export: the same function in fewer operations."""
