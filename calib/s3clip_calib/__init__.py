"""INT8/FP8 quantisation of bundles. Empty so far: the room and its import rule exist, no command does."""
