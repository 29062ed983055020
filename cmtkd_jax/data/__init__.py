"""Data sets, their order, and the preprocessing that runs inside the compiled step.

dataset = data.load(config.data, batch_size=128, eval_batch_size=1000, seed=0, mesh=mesh)
for batch in dataset.train.batches(start=0):   # {'image': uint8[B, h, w, C], 'label': int32[B]}
  ...                                          # in the step: dataset.augment(key, batch['image'])
"""

from cmtkd_jax.data.dataset import Dataset, load
from cmtkd_jax.data.loading.loaders import EvalLoader, TrainLoader
from cmtkd_jax.data.settings import Settings, input_shape

__all__ = ['Dataset', 'EvalLoader', 'Settings', 'TrainLoader', 'input_shape', 'load']
