"""Does CMT-KD's student gain from the paper's schedule? Steps of the learning rate against a cosine, 40 epochs.

The paper lowers the learning rate after 5/12 and 10/12 of 120 epochs, so that for more than half of the time the
student learns at low rates from teachers that are good already. A cosine of 20 epochs, as in ladder_resnet8.py, leaves
it little of that. ResNet8 on ten classes of CIFAR-100; the figures are those of a held-out fifth of the 5,000 training
images (`data.minival`).

A run of CMT-KD takes about 15 minutes on one core of an AMD EPYC with other work on the second, the others 4 to 8; a
seed has 6 runs. After 20 epochs (ladder_resnet8) the gain's standard deviation from seed to seed was 1.8 points: at
that, four seeds must show a gain of 2.9 to tell it from none with 95 % confidence.
Run:   python -m cmtkd_jax.main --mode=table --config=benchmarks/schedules_resnet8.py --config.data.name=npy:DIR
Print: python -m cmtkd_jax.main --mode=summarize --config=benchmarks/schedules_resnet8.py \
           --workdir=benchmarks/results/schedules_resnet8
"""

from cmtkd_jax import config as base

SYSTEMS = {  # row of ladder_resnet8.py: (name here, title, bits)
  'full_precision': ('full', 'full precision', '32/32'),
  'single2': ('alone', '2 bits alone', '2/2'),
  'without_attention': ('cmtkd', 'CMT-KD without attention', '2/2'),
}
SCHEDULES = {
  'steps': dict(schedule='step', decay_at='17, 33 epochs'),
  'cosine': dict(schedule='cosine'),
}


def get_config(argument=''):
  config = base.load_config(__file__, 'ladder_resnet8')
  config.duration = '40 epochs'
  config.data.minival, config.table.split = 0.2, 'minival'
  config.table.seeds = (0, 1, 2, 3)
  config.table.title = 'Steps against a cosine, held-out training images: ten classes, ResNet8, 40 epochs'
  config.table.baseline = 'alone_steps'
  rows = config.table.runs.to_dict()
  config.table.runs, lines = {}, []
  for row, (name, title, bits) in SYSTEMS.items():
    for schedule, optimizer in SCHEDULES.items():
      config.table.runs[f'{name}_{schedule}'] = rows[row] | dict(optimizer=optimizer)
      lines.append((f'{title}, {schedule}', bits, f'{name}_{schedule}', 'student', (None, None)))
  combined = (
    (f'combined teacher, {schedule}', '4, 6, 8', f'cmtkd_{schedule}', 'combined_teacher', (None, None))
    for schedule in SCHEDULES
  )
  config.table.lines = (*lines, *combined)
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 32))
