"""A trained network as a file: packed archive, StableHLO, ONNX; and its evaluation in integers."""
