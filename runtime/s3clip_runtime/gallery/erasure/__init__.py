"""Forgetting people: what goes, how it is shown that it is gone, and signed receipts."""
