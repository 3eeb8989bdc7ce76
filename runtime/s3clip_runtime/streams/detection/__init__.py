"""Persons in frames: by motion, by a network, or from outside."""
