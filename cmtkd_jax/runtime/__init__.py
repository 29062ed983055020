"""The process and the machine it runs in; knows nothing of training."""
