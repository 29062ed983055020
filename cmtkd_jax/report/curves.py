"""What changed while a run trained: accuracies, loss terms, importance factors; one image for each panel."""

from cmtkd_jax.methods.base import IMPORTANCE
from cmtkd_jax.models import STUDENT
from cmtkd_jax.report import plotting, training_rows
from cmtkd_jax.report.page import Section
from cmtkd_jax.runs.run_reader import display_name
from cmtkd_jax.training import loss_schedule

_NO_LOSS = ('top1', *training_rows.NO_MEAN)  # train/[NETWORK/]METRIC
_NO_TERMS = ('gradient_norm', 'frozen_weights')  # drawn after the terms
_TEXT_OF_TERMS = (
  'The total loss and its terms, one panel for each kind, before weighting; every point is the mean since the '
  'logged line before, short windows merged. <em>Cross entropy</em> compares a network with the labels. Terms of '
  'distillation (<em>mutual</em>, <em>feature</em>, <em>imitation</em>, <em>distillation</em>) compare networks with '
  'each other, their answers or, at the tapped layers, their feature maps. <em>Gradient norm</em> is the length of '
  'the gradient that reaches each network, <em>frozen weights</em> the percentage of its weights that are kept because '
  'they oscillated. Axes are logarithmic wherever all values are positive; the learning rate '
  'is the size of the steps. <em>Beta</em>, <em>gamma</em> and <em>temperature</em> are drawn where they follow a '
  'schedule.'
)


def learning_curves(run):
  """Top-1 of every network against epochs: evaluation splits, and training images."""
  title = 'Learning curves'
  if not run.networks:
    return Section(title, 'There is no evaluation in metrics.jsonl yet.')
  trained = [name.split('/')[1] for name in run.names if name.startswith('train/') and name.endswith('/top1')]
  networks = list(dict.fromkeys(run.networks + sorted(trained, key=lambda name: name != STUDENT)))
  has_minival = any(name.startswith('minival/') for name in run.names)
  splits = ('test', 'minival') if has_minival else ('test',)
  figures = {
    'learning_curves_test.png': accuracies(
      run, networks, splits, 'test (solid) and minival (dashed)' if has_minival else 'test images'
    )
  }
  if trained:
    figures['learning_curves_train.png'] = accuracies(run, networks, ('train',), 'training images, augmented')
  text = (
    'The share of images whose most likely class is the right one. First, images that are never trained '
    'on, each counted once; then the training batches, averaged from one logged line to the next, '
    'with the parameters as they were during training and the images shifted, cropped or mirrored at random. '
    'The panels have scales of their own. Training far above test: the network overfits; both low: it is too '
    'small or was not trained long enough. '
    + (
      '<em>minival</em> is a held-out slice of the training images: it chooses an epoch without looking at test.'
      if has_minival
      else ''
    )
  )
  return Section(title, text, {name: plotting.png(figure) for name, figure in figures.items()})


def accuracies(run, networks, splits, title):
  """Returns the figure of top-1 of `networks` on `splits`, on a scale of its own."""
  figure, panel = plotting.panel(4.4, 3.4)
  for i, network in enumerate(networks):
    for split in splits:
      x, y = training_rows.series(run, f'{split}/{network}/top1')
      if len(x):
        label = f'{display_name(network)}, {split}' if len(splits) > 1 else display_name(network)
        plotting.line(panel, x, y, i, label, dashed=split == 'minival')
  panel.set_title(title, fontsize=10)
  panel.set_ylabel('top-1 accuracy (%)', fontsize=9)
  low, high = panel.get_ylim()
  panel.set_ylim(max(low, -1), min(high, 101))
  _finish(panel)
  return figure


def loss_terms(run):
  """Every logged term of the loss, one panel per kind, and the learning rate."""
  title = 'Loss terms'
  kinds = {}
  for name in run.names:
    if name.startswith('train/') and name.split('/')[-1] not in _NO_LOSS:
      kinds.setdefault(_kind(name), []).append(name)
  if not kinds:
    return Section(title, 'There is no row of training in metrics.jsonl yet.')
  images = {}
  for kind in sorted(kinds, key=lambda kind: (kind != 'loss', kind in _NO_TERMS)):
    file = plotting.file_name('loss_terms', 'total' if kind == 'loss' else kind)
    images[file] = plotting.png(_terms(run, kind, kinds[kind]))
  if rates := _rates(run):
    images['loss_terms_learning_rate.png'] = plotting.png(learning_rate(run, rates))
  for value in loss_schedule.VALUES:
    if f'train/{value}' in run.names:
      images[plotting.file_name('loss_terms', value)] = plotting.png(_scheduled(run, value))
  return Section(title, _TEXT_OF_TERMS, images)


def _terms(run, kind, names):
  figure, panel = plotting.panel(3.4, 3.0)
  values = []
  for i, name in enumerate(sorted(names, key=lambda name: name.split('/')[1] != STUDENT)):
    x, y = training_rows.series(run, name)
    plotting.line(panel, x, y, i, display_name(_label(name)))
    values += list(y)
  plotting.log_y_where_positive(panel, values)
  panel.set_title('total loss' if kind == 'loss' else plotting.plain(display_name(kind)), fontsize=10)
  _finish(panel, legend=len(names) > 1 or names[0].count('/') > 1)
  return figure


def _rates(run):
  return [name for name in run.names if name.startswith('train/') and name.endswith('/learning_rate')]


def learning_rate(run, names):
  """Returns the figure of the learning rates `names`, in steps where the schedule has steps."""
  figure, panel = plotting.panel(3.4, 3.0)
  for i, name in enumerate(names):
    x, y = run.series(name)
    if run.config.optimizer.schedule == 'step':
      x, y = plotting.stairs(x, y)
    plotting.line(panel, x, y, i, 'importance factors' if name.count('/') > 1 else 'networks', marked=False)
  panel.set_title('learning rate', fontsize=10)
  panel.set_ylim(bottom=0)
  _finish(panel, legend=len(names) > 1)
  return figure


def _scheduled(run, value):
  figure, panel = plotting.panel(3.4, 3.0)
  plotting.line(panel, *run.series(f'train/{value}'), 0, value, marked=False)
  panel.set_title(value, fontsize=10)
  panel.set_ylim(bottom=0)
  _finish(panel, legend=False)
  return figure


def importance_factors(run):
  """The importance of each teacher at each tap (Figure 2 of the paper); None where the method has none."""
  names = _importance_names(run)
  if not names:
    return None
  taps = {}
  for name in names:
    _, tap, teacher = name.split('/')
    taps.setdefault(tap, []).append(teacher)
  panels = {tap: _importance(run, tap, teachers) for tap, teachers in taps.items()}
  low, high = zip(*(panel.get_ylim() for _, panel in panels.values()))
  for _, panel in panels.values():  # one scale: which tap has the most important teacher is what one looks for
    panel.set_ylim(max(min(low), -0.01), min(max(high), 1.01))
  text = (
    'At each tapped layer the feature maps of all teachers are mixed into one, which is every teacher&#39;s next input '
    'and the student&#39;s target. The <em>importance factors</em> are the weights of that mixture: one for '
    'each teacher, learned along with everything else, never negative, together 1. They start equal (dotted) '
    'unless the configuration says otherwise; a line that rises is a teacher whose map serves better at that '
    'layer. All panels have one scale, which need not start at 0.'
  )
  images = {plotting.file_name('importance', tap): plotting.png(figure) for tap, (figure, _) in panels.items()}
  return Section('Importance factors', text, images)


def _importance(run, tap, teachers):
  figure, panel = plotting.panel(3.4, 3.0)
  panel.axhline(1 / len(teachers), color=plotting.GRAY, linewidth=1, linestyle=':', label='all equal')
  for i, teacher in enumerate(teachers):
    x, y = run.series(f'{IMPORTANCE}/{tap}/{teacher}')
    plotting.line(panel, x, y, i, display_name(teacher))
  panel.set_title(plotting.plain(f'tapped layer {tap.removeprefix("tap")}'), fontsize=10)
  panel.set_ylabel('importance', fontsize=9)
  _finish(panel)
  return figure, panel


def _finish(panel, legend=True):
  plotting.epochs(panel)
  if legend and panel.lines:
    plotting.legend_below(panel)


def _kind(name):
  """The kind of term that train/TERM or train/NETWORK/TERM[/TAP] is."""
  parts = name.split('/')
  return parts[2] if len(parts) > 2 else parts[1]


def _label(name):
  """The label of a line in the panel of its kind: the network, or the tap of a feature loss."""
  parts = name.split('/')
  return parts[3] if len(parts) > 3 else parts[1]


def _importance_names(run):
  return [name for name in run.names if name.split('/')[0] == IMPORTANCE and name.count('/') == 2]
