"""The networks: super-resolver, encoder, text side, and the readers of public weights."""
