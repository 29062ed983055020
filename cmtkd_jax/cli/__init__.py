"""The command: its flags, what `--mode` can be, its output, Ctrl-C."""
