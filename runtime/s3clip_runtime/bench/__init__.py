"""Measures a bundle on the machine that it runs on: times, memory, energy, and how near to PyTorch."""
