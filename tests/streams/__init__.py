"""Cameras that fail on demand: an RTSP server, a TCP proxy, and the faults that a run must survive."""
