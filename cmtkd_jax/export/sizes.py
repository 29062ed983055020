"""How many bytes the weights of an exported network take."""

from cmtkd_jax.export.graph import Graph


def by_bits(graph: Graph) -> dict[int, int]:
  """Returns `{bits: number of weights}`, in ascending order."""
  found: dict[int, int] = {}
  pixels = {node.output for node in graph.nodes if node.op == 'pixels'}
  for node in graph.nodes:
    if 'bits' in node.attributes:
      # Pixels have a channel of 255s, whose weights stand for mean and std of the images.
      weights = node.weights[:, :, :-1] if node.inputs[0] in pixels else node.weights
      found[node.attributes['bits']] = found.get(node.attributes['bits'], 0) + weights.size
  return dict(sorted(found.items()))
