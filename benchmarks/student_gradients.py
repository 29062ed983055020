"""What moves the student of CMT-KD: the gradient of each term of eq. (10), and how far teachers differ from labels.

Run: python benchmarks/student_gradients.py RUN [RUN ...] --out=FILE.json    (writes FILE.md beside it)

RUN is the work directory of a run of CMT-KD. To keep many checkpoints, train with checkpoint_every='100 steps' and
max_checkpoints=50. At each of them the student's terms are differentiated on training batches, augmented and mixed as
in training: L_CE^S with its weight alpha, L_KL^S with beta, the feature loss with gamma.

  share:      norm of a term's gradient in the student's parameters, in percent of the sum over the terms
  cosine:     between a term's gradient and that of L_CE^S; 1 where it asks for what the labels ask for
  true class: probability of the label at temperature tau: combined teacher, min-logit target, student; in percent
  agree:      images for which the combined teacher and the student choose the same class, in percent
"""

import argparse
import functools
import itertools
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'benchmarks')]

import jax
import jax.numpy as jnp
import numpy as np
import train_step

from cmtkd_jax import losses
from cmtkd_jax.errors import UserError
from cmtkd_jax.methods.cmtkd import CMTKD, COMBINED
from cmtkd_jax.models import STUDENT
from cmtkd_jax.runs import checkpoint, provenance, run_files, run_reader
from cmtkd_jax.training import build, restore
from cmtkd_jax.training.step import MixedLabels, mixed

TERMS = ('cross_entropy', 'mutual', 'feature')


def student_terms(method, outputs, labels):
  """Returns the weighted terms of eq. (10) that the student is trained on, float32 [3] in the order of `TERMS`."""
  settings = method.settings
  total, terms = method.loss(outputs, labels)
  weighted = lambda network: (
    settings.alpha * terms[f'{network}/cross_entropy'],
    settings.beta * terms[f'{network}/mutual'],
  )
  own = weighted(STUDENT)
  return jnp.stack([*own, total - sum(own) - sum(weighted(COMBINED))])


def confidences(method, outputs, labels):
  """Returns `{name: percent}` of the true class at the temperature of mutual learning, and of equal choices."""
  teacher, student = outputs.logits[COMBINED], outputs.logits[STUDENT]
  logits = {COMBINED: teacher, 'target': losses.min_logit(teacher, student, labels), STUDENT: student}
  of_label = lambda z: jnp.take_along_axis(jax.nn.softmax(z / method.settings.temperature), labels[:, None], 1)
  found = {f'{name}_true_class': 100 * jnp.mean(of_label(z)) for name, z in logits.items()}
  return found | {'agree': 100 * jnp.mean(jnp.argmax(teacher, 1) == jnp.argmax(student, 1))}


def measure(variables, batch, key, *, method, dataset):
  """Returns `{name: float32 scalar}` of one training batch."""
  images, labels = dataset.augment(key, batch['image']), batch['label']
  if dataset.mix is not None:
    images, share = dataset.mix(jax.random.fold_in(key, 1), images)
    labels = MixedLabels(labels, jnp.roll(labels, 1), jnp.full(labels.shape, share))
  collections = [name for name in variables if name != 'params']

  def terms(student):
    networks = variables['params'] | {STUDENT: student}
    outputs, _ = method.apply({**variables, 'params': networks}, images, train=True, mutable=collections)
    return mixed(functools.partial(student_terms, method, outputs), labels), outputs

  gradients, outputs = jax.jacrev(terms, has_aux=True)(variables['params'][STUDENT])
  products = sum(jnp.einsum('i...,j...->ij', g, g) for g in jax.tree.leaves(gradients))
  norms = jnp.sqrt(jnp.diagonal(products))
  found = {f'{name}_share': 100 * norm / jnp.sum(norms) for name, norm in zip(TERMS, norms)}
  found |= {f'{name}_norm': norm for name, norm in zip(TERMS, norms)}
  cosines = products[0] / jnp.maximum(norms[0] * norms, 1e-12)
  found |= {f'{name}_cosine': cosine for name, cosine in zip(TERMS[1:], cosines[1:])}
  return found | mixed(functools.partial(confidences, method, outputs), labels)


def open_run(workdir):
  """Returns (`run_reader.Run`, its CMT-KD); `UserError` where there is none."""
  run = run_reader.read(workdir)
  method = restore.create_method(run)
  if not isinstance(method, CMTKD):
    raise UserError(f'{workdir} holds a run of {run.config.method.name}; give runs of cmtkd')
  return run, method


def rows_of(run, method, batches):
  """Returns for each checkpoint of a run `{'step': ..., name: mean over `batches` training batches}`."""
  mesh = build.make_mesh()
  dataset = build.load_data(run.config, mesh)
  step_fn = jax.jit(functools.partial(measure, method=method, dataset=dataset))
  rows = []
  for step in checkpoint.steps(run.directory / run_files.CHECKPOINTS):
    variables = jax.device_put(restore.load_trained(run, step).variables, build.replicated(mesh))
    keys = jax.random.split(jax.random.fold_in(jax.random.key(run.config.seed), step), batches)
    data = itertools.islice(dataset.train.batches(step), batches)
    found = [step_fn(variables, batch, key) for batch, key in zip(data, keys)]
    rows.append({'step': step} | {name: float(np.mean([row[name] for row in found])) for name in found[0]})
  return rows


COLUMNS = {  # title: (name, digits)
  'cross entropy, share': ('cross_entropy_share', 0),
  'mutual, share': ('mutual_share', 0),
  'feature, share': ('feature_share', 0),
  'mutual, cosine': ('mutual_cosine', 2),
  'feature, cosine': ('feature_cosine', 2),
  'combined teacher, true class': (f'{COMBINED}_true_class', 1),
  'target, true class': ('target_true_class', 1),
  'student, true class': (f'{STUDENT}_true_class', 1),
  'agree': ('agree', 1),
}


def markdown(runs):
  """Returns a table of every run: a line for each checkpoint."""
  lines = []
  for name, rows in runs.items():
    lines += [f'{name}:', '', f'| step | {" | ".join(COLUMNS)} |', '|' + '---|' * (1 + len(COLUMNS))]
    for row in rows:
      lines.append(f'| {row["step"]:,} | {" | ".join(f"{row[key]:.{digits}f}" for key, digits in COLUMNS.values())} |')
    lines.append('')
  return '\n'.join(lines)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('runs', nargs='+', metavar='RUN')
  parser.add_argument('--out', required=True, type=pathlib.Path, help='JSON file to write')
  parser.add_argument('--batches', type=int, default=20, help='training batches at each checkpoint')
  arguments = parser.parse_args()
  report = {
    'command': ' '.join(['python', *sys.argv]),
    'commit': provenance.commit(),
    'cpu': train_step.cpu_model(),
    'batches': arguments.batches,
    'runs': {},
  }
  try:
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    opened = {workdir: open_run(workdir) for workdir in arguments.runs}  # all, before the first is measured
    for workdir, (run, method) in opened.items():
      rows = report['runs'][workdir] = rows_of(run, method, arguments.batches)
      print(markdown({workdir: rows}), flush=True)
      arguments.out.write_text(json.dumps(report, indent=1) + '\n')
      arguments.out.with_suffix('.md').write_text(markdown(report['runs']))
  except (UserError, OSError) as e:
    parser.error(str(e))


if __name__ == '__main__':
  main()
