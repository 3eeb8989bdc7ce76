"""FP16 graphs: the audit of ranges, the conversion, and their runs on a CPU."""
