"""Which part of CTKD helps or hurts: a ResNet8 student, in full precision and with 2 bits, on 72 of the digits.

Network and data of few_digits_resnet8.py, where CTKD's student with 2 bits ends below the network alone. Expert and
scratch teacher are ResNet20. The weights of the two terms (0.03 for the scratch teacher's logits, 1000 for the expert's
attention maps) are those of CTKD's sources; here each is left out or made ten or a hundred times smaller. A run of CTKD
takes less than a minute on one core of an AMD EPYC. Seeds 0 to 6 showed that beta 10 helps; others confirmed it.
Run: python -m cmtkd_jax.main --mode=table --config=benchmarks/few_digits_ctkd.py
     python -m cmtkd_jax.main --mode=table --config=benchmarks/few_digits_ctkd.py \
         --config.table.seeds='(20, 21, 22, 23, 24)' --workdir=runs/confirm --config.table.only="('full_alone', \
         'full_kd', 'full_ctkd_imitation', 'full_ctkd_weak', 'full_ctkd_beta_10', 'two_alone', 'two_kd', \
         'two_ctkd_imitation', 'two_ctkd_weak', 'two_ctkd_beta_10')"
"""

from cmtkd_jax import config as base

STUDENTS = {'full': ('32/32', (32, 32)), 'two': ('2/2', (2, 2))}
CTKD = {  # name -> (title, settings)
  'ctkd': ('CTKD', {}),
  'ctkd_attention': ('CTKD, expert alone', dict(gamma=0.0)),
  'ctkd_imitation': ('CTKD, scratch teacher alone', dict(beta=0.0)),
  'ctkd_gamma_003': ('CTKD, gamma 0.003', dict(gamma=0.003)),
  'ctkd_beta_100': ('CTKD, beta 100', dict(beta=100.0)),
  'ctkd_beta_10': ('CTKD, beta 10', dict(beta=10.0)),
  'ctkd_weak': ('CTKD, gamma 0.003 and beta 10', dict(gamma=0.003, beta=10.0)),
  'ctkd_kd': ("CTKD, and KL to the expert's logits, alpha 0.1", dict(alpha=0.1)),
}


def get_config(argument=''):
  config = base.load_config(__file__, 'few_digits_resnet8')
  full_precision = config.table.runs.full_precision.to_dict()
  expert = dict(teacher_workdirs=('{expert}',))
  config.table.title = 'CTKD on 72 digits: ResNet8 learns from ResNet20, 1,200 steps'
  config.table.seeds = tuple(range(7))
  runs = dict(expert=full_precision | dict(model=dict(name='resnet20')))
  lines = [('ResNet20, full precision', '32/32', 'expert', 'student', (None, None))]
  for student, (bits, (weight_bits, activation_bits)) in STUDENTS.items():
    widths = dict(student=dict(weight_bits=weight_bits, activation_bits=activation_bits))
    own = dict(alone=('alone', widths | dict(method=dict(name='single'))))
    own |= dict(kd=('KD', widths | expert | dict(method=dict(name='kd'))))
    for name, (title, settings) in CTKD.items():
      ctkd = dict(teacher_model='resnet20', shared_stem=False) | settings
      own[name] = (title, widths | expert | dict(method=dict(name='ctkd', ctkd=ctkd)))
    runs |= {f'{student}_{name}': run for name, (_, run) in own.items()}
    lines += [(title, bits, f'{student}_{name}', 'student', (None, None)) for name, (title, _) in own.items()]
  config.table.runs, config.table.lines, config.table.baseline = runs, tuple(lines), 'two_alone'
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 8, channels=1))
