"""Camera streams in, events out."""
