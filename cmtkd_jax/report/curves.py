"""What changed while a run trained: accuracies, loss terms, importance factors."""

from cmtkd_jax.models import STUDENT
from cmtkd_jax.report import plotting
from cmtkd_jax.report.page import Section
from cmtkd_jax.runs.run_reader import display_name

_NO_LOSS = ('top1', 'learning_rate', 'epoch', 'corrupt_images')  # train/METRIC and train/NETWORK/METRIC
_IMPORTANCE = 'importance/'


def learning_curves(run):
  """Top-1 of every network against epochs: evaluation splits, and training images."""
  title = 'Learning curves'
  if not run.networks:
    return Section(title, 'There is no evaluation in metrics.jsonl yet.')
  trained = [name.split('/')[1] for name in run.names if name.startswith('train/') and name.endswith('/top1')]
  networks = list(dict.fromkeys(run.networks + sorted(trained, key=lambda name: name != STUDENT)))
  has_minival = any(name.startswith('minival/') for name in run.names)
  figure, (evaluated, training) = plotting.panels(2, 2, 5, 3.6)
  for i, network in enumerate(networks):
    for split in ('test', 'minival'):
      x, y = run.series(f'{split}/{network}/top1')
      if len(x):
        label = f'{display_name(network)}, {split}' if has_minival else display_name(network)
        plotting.line(evaluated, x, y, i, label, dashed=split == 'minival')
    x, y = run.series(f'train/{network}/top1')
    if len(x):
      plotting.line(training, x, y, i, display_name(network))
  evaluated.set_title(
    f'evaluation: {"test (solid) and minival (dashed)" if has_minival else "test images"}', fontsize=10
  )
  training.set_title('training: augmented images', fontsize=10)
  for panel in (evaluated, training):
    plotting.epochs(panel)
    panel.set_ylabel('top-1 accuracy (%)', fontsize=9)
    if panel.lines:
      plotting.legend_below(panel)
  low, high = _common_limits((evaluated, training))
  for panel in (evaluated, training):
    panel.set_ylim(max(low, -1), min(high, 101))
  text = (
    'The share of images whose most likely class is the right one. On the left, images that are never trained '
    'on, each counted once; on the right, the training batches, averaged from one logged line to the next, '
    'with the parameters as they were during training and the images shifted, cropped or mirrored at random. '
    'Training far above test: the network overfits; both low: it is too '
    'small or has trained too short. '
    + (
      '<em>minival</em> is a held-out slice of the training images: it chooses an epoch without looking at test.'
      if has_minival
      else ''
    )
  )
  return Section(title, text, {'learning_curves.png': plotting.png(figure)})


def loss_terms(run):
  """Every logged term of the loss, one panel a kind, and the learning rate."""
  title = 'Loss terms'
  kinds = {}
  for name in run.names:
    if name.startswith('train/') and name.split('/')[-1] not in _NO_LOSS:
      kinds.setdefault(_kind(name), []).append(name)
  if not kinds:
    return Section(title, 'There is no row of training in metrics.jsonl yet.')
  kinds = {kind: kinds[kind] for kind in sorted(kinds, key=lambda kind: (kind != 'loss', kind == 'gradient_norm'))}
  rates = [
    name
    for name in run.names
    if name == 'train/learning_rate' or (name.endswith('/learning_rate') and _importance_names(run))
  ]
  figure, axes = plotting.panels(len(kinds) + bool(rates), 3, 3.6, 3.0)
  for panel, (kind, names) in zip(axes, kinds.items()):
    values = []
    for i, name in enumerate(sorted(names, key=lambda name: name.split('/')[1] != STUDENT)):
      x, y = run.series(name)
      plotting.line(panel, x, y, i, display_name(_label(name)))
      values += list(y)
    plotting.log_y_where_positive(panel, values)
    panel.set_title('total loss' if kind == 'loss' else plotting.plain(display_name(kind)), fontsize=10)
    if len(names) > 1 or names[0].count('/') > 1:
      plotting.legend_below(panel)
  if rates:
    for i, name in enumerate(rates):
      x, y = run.series(name)
      plotting.line(axes[-1], x, y, i, 'importance factors' if name.count('/') > 1 else 'networks')
    axes[-1].set_title('learning rate', fontsize=10)
    if len(rates) > 1:
      plotting.legend_below(axes[-1])
  for panel in axes:
    plotting.epochs(panel)
  text = (
    'The total loss and its terms, one panel for each kind, before '
    'weighting; every point is the mean since the logged line before. <em>Cross entropy</em> compares a network '
    'with the labels. Terms of distillation (<em>mutual</em>, <em>feature</em>, <em>imitation</em>, '
    '<em>distillation</em>) compare networks with each other, their answers or, at the tapped layers, their '
    'inner maps. <em>Gradient norm</em> is the length of the gradient that reaches each network. Axes are '
    'logarithmic wherever all values are positive; the learning rate is the size of the steps.'
  )
  return Section(title, text, {'loss_terms.png': plotting.png(figure)})


def importance_factors(run):
  """The importance of each teacher at each tap (Figure 2 of the paper); None where the method has none."""
  names = _importance_names(run)
  if not names:
    return None
  taps = {}
  for name in names:
    _, tap, teacher = name.split('/')
    taps.setdefault(tap, []).append(teacher)
  figure, axes = plotting.panels(len(taps), 3, 3.6, 3.0)
  for panel, (tap, teachers) in zip(axes, taps.items()):
    panel.axhline(1 / len(teachers), color=plotting.GRAY, linewidth=1, linestyle=':', label='all equal')
    for i, teacher in enumerate(teachers):
      x, y = run.series(f'{_IMPORTANCE}{tap}/{teacher}')
      plotting.line(panel, x, y, i, display_name(teacher))
    panel.set_title(f'tapped layer {tap.removeprefix("tap")}', fontsize=10)
    plotting.epochs(panel)
    panel.set_ylabel('importance', fontsize=9)
  low, high = _common_limits(axes)
  for panel in axes:
    panel.set_ylim(max(low, -0.01), min(high, 1.01))
  handles, labels = axes[0].get_legend_handles_labels()
  figure.legend(handles, labels, fontsize=8, frameon=False, loc='outside lower center', ncols=min(len(labels), 5))
  text = (
    'At each tapped layer the maps of all teachers are mixed into one, which is every teacher&#39;s next input '
    'and the student&#39;s target. The <em>importance factors</em> are the weights of that mixture: one for '
    'each teacher, learned along with everything else, never negative, together 1. They start equal (dotted) '
    'unless the configuration says otherwise; a line that rises is a teacher whose map serves better at that '
    'layer. All panels have one scale, which need not start at 0.'
  )
  return Section('Importance factors', text, {'importance.png': plotting.png(figure)})


def _kind(name):
  """The kind of term that train/TERM or train/NETWORK/TERM[/TAP] is."""
  parts = name.split('/')
  return parts[2] if len(parts) > 2 else parts[1]


def _label(name):
  """The label of a line in the panel of its kind: the network, or the tap of a feature loss."""
  parts = name.split('/')
  return parts[3] if len(parts) > 3 else parts[1]


def _common_limits(axes):
  low, high = zip(*(panel.get_ylim() for panel in axes))
  return min(low), max(high)


def _importance_names(run):
  return [name for name in run.names if name.startswith(_IMPORTANCE) and name.count('/') == 2]
