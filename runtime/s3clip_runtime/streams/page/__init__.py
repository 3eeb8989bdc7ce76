"""The status page, its JSON, and the metrics."""
