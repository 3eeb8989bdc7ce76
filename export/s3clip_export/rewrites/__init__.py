"""Networks written anew for export: the same numbers from the same weights with fewer operations."""
