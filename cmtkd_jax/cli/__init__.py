"""The command: its flags, what `--mode` can be, Ctrl-C."""
