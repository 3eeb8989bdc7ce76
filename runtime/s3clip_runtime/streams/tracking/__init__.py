"""Detections to tracks, tracks to tracklets, and how much each crop tells."""
