"""Does a 2-bit student of 72 digits that imitates the logits of a teacher beside it pass full precision?

Network and data of few_digits_resnet8.py. In few_digits_ctkd.py the scratch teacher of CTKD helps and its expert hurts;
here the expert's attention maps are left out (beta 0), and quantizer, weight and size of the scratch teacher vary. For
comparison, CMT-KD whose mutual loss is the same squared difference of logits. Chosen on five seeds, confirmed on
others. A run takes 30 to 60 seconds on one core of an AMD EPYC.
Run: python -m cmtkd_jax.main --mode=table --config=benchmarks/few_digits_imitation.py
"""

from cmtkd_jax import config as base

SAWB = dict(quantizer=dict(name='sawb', sawb=dict(activation=dict(init_clip=2.0))))
# Weight of the squared difference of logits by scratch teacher; CTKD's is 0.03. First tries: with ResNet20, 0.03 and
# more cost the student three points and more, with either quantizer.
GAMMAS = {'resnet8': (0.003, 0.01, 0.03, 0.1), 'resnet20': (0.001, 0.003, 0.01)}


def get_config(argument=''):
  config = base.load_config(__file__, 'few_digits_resnet8')
  rows = config.table.runs.to_dict()

  def imitation(gamma, teacher):
    ctkd = dict(teacher_model=teacher, shared_stem=False, gamma=gamma, beta=0.0)
    # An expert has to be named, but has no part in the loss.
    return dict(method=dict(name='ctkd', ctkd=ctkd), teacher_workdirs=('{full_precision}',)) | SAWB

  def mutual(beta):
    cmtkd = dict(teacher_bits=(4, 5, 8), beta=beta)  # SAWB has no 6 bits
    return rows['without_attention'] | SAWB | dict(method=dict(cmtkd=cmtkd), logit_loss=dict(name='logits_regression'))

  runs = {name: rows[name] for name in ('full_precision', 'single2')} | dict(single2_sawb=rows['single2'] | SAWB)
  runs |= {
    f'{teacher}_{gamma:g}'.replace('.', ''): imitation(gamma, teacher)
    for teacher, gammas in GAMMAS.items()
    for gamma in gammas
  }
  runs |= {f'cmtkd_sawb_{beta:g}'.replace('.', ''): mutual(beta) for beta in (0.03, 0.1, 0.3, 1.0)}
  config.table.title = '72 digits, ResNet8: imitation of logits'
  config.table.seeds = tuple(range(310, 315))
  config.table.runs, config.table.baseline = runs, 'full_precision'
  bits = lambda run: '32/32' if run == 'full_precision' else '2/2'
  config.table.lines = tuple((run, bits(run), run, 'student', (None, None)) for run in runs)
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 8, channels=1))
