"""Several runs: those that come before a run, tables of runs, what bit policies cost before training."""
