"""Average of several networks' predictions, as logits."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def mean_softmax(logits: Sequence[jax.Array], temperature: float) -> jax.Array:
  """Logits whose softmax is the mean of the softmax outputs of n networks.

      z = tau * log( 1/n sum_i softmax(z_i / tau) ),  so that  softmax(z / tau) = mean_i softmax(z_i / tau)

  Args:
    logits: n arrays [B, C], floating, finite.
    temperature: tau > 0.

  Returns:
    [B, C], float32, <= 0.

  Raises:
    ValueError: n is 0, or the arrays are not all [B, C] of one shape.

  Source: You et al., "Learning from Multiple Teacher Networks", KDD 2017; CMT-KD's "average teacher".
  """
  if len(logits) == 0 or any(z.ndim != 2 or z.shape != logits[0].shape for z in logits):
    raise ValueError(f'logits must be n >= 1 arrays [B, C] of one shape; got {[z.shape for z in logits]}')
  log_p = jnp.stack([jax.nn.log_softmax(z.astype(jnp.float32) / temperature, axis=-1) for z in logits])
  return temperature * (jax.nn.logsumexp(log_p, axis=0) - jnp.log(jnp.float32(len(logits))))
