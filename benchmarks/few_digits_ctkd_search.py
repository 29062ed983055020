"""Does a 2-bit student of CTKD pass full precision? 72 digits, ResNet8; it does not.

With the weights that helped in few_digits_ctkd.py: SAWB and PACT in place of HWGQ, other weights, a scratch teacher of
the student's size, and cutout.
Run: python -m cmtkd_jax.main --mode=table --config=benchmarks/few_digits_ctkd_search.py
"""

from cmtkd_jax import config as base

SAWB = dict(quantizer=dict(name='sawb', sawb=dict(activation=dict(init_clip=2.0))))
CUTOUT = dict(data=dict(cutout=3))


def get_config(argument=''):
  config = base.load_config(__file__, 'few_digits_ctkd')
  rows = config.table.runs.to_dict()

  def ctkd(**settings):
    settings = dict(teacher_model='resnet20', shared_stem=False, beta=10.0) | settings
    return rows['two_kd'] | dict(method=dict(name='ctkd', ctkd=settings))

  runs = dict(
    expert=rows['expert'],
    full_precision=rows['full_alone'],
    single2_sawb=rows['two_alone'] | SAWB,
    ctkd=ctkd(),
    ctkd_sawb=ctkd() | SAWB,
    ctkd_sawb_gamma_001=ctkd(gamma=0.01) | SAWB,
    ctkd_sawb_beta_3=ctkd(beta=3.0) | SAWB,
    ctkd_sawb_beta_30=ctkd(beta=30.0) | SAWB,
    ctkd_sawb_resnet8=ctkd(teacher_model='resnet8') | SAWB,
    full_precision_cutout=rows['full_alone'] | CUTOUT,
    single2_sawb_cutout=rows['two_alone'] | SAWB | CUTOUT,
    ctkd_sawb_cutout=ctkd() | SAWB | CUTOUT,
  )
  config.table.title = '72 digits, ResNet8: CTKD against full precision'
  config.table.seeds = tuple(range(400, 406))
  config.table.runs, config.table.baseline = runs, 'full_precision'
  bits = lambda run: '32/32' if run.startswith(('expert', 'full')) else '2/2'
  config.table.lines = tuple((run, bits(run), run, 'student', (None, None)) for run in runs)
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 8, channels=1))
