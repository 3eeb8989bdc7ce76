"""The command-line doors of the runtime, one small module a command."""
