"""The ablation of CMT-KD (its Table 2) scaled down: ResNet8 on ten classes of CIFAR-100 at 32x32, for a CPU.

5,000 training and 1,000 test images of classes 0-9, from a folder of .npy arrays; about 15 minutes a seed on 2 cores.
Data:  python launch/prepare_cifar.py cifar-100-python.tar.gz cifar100_classes_0_9 --classes=10
Run:   python -m cmtkd_jax.main --mode=table --config=benchmarks/cifar10c_resnet8.py --config.data.name=npy:DIR
Print: python -m cmtkd_jax.main --mode=summarize --config=benchmarks/cifar10c_resnet8.py \
           --workdir=benchmarks/results/cifar10c_resnet8
"""

from cmtkd_jax import config as base


def get_config(argument=''):
  config = base.default()
  config.data.name = 'npy:cifar100_classes_0_9'
  # Flips alone: with random crops too, a network this small underfits, and distillation has little to give it.
  config.data.image_size, config.data.augment, config.data.pad = 32, 'pad_crop_flip', 0
  config.data.mean, config.data.std = (0.507, 0.487, 0.441), (0.267, 0.256, 0.276)
  config.model.name, config.model.stem, config.model.width = 'resnet8', 'cifar', 1.0
  config.batch_size, config.eval_batch_size = 128, 500
  config.duration = '10 epochs'
  config.optimizer.learning_rate, config.optimizer.schedule, config.optimizer.warmup = 0.1, 'cosine', '1 epochs'
  config.log_every, config.eval_every, config.checkpoint_every = '1 epochs', '2 epochs', '2 epochs'
  config.tensorboard = False

  rows = base.load_config(__file__, '../configs/table1_alexnet_cifar100').table  # the same systems
  optimal = dict(quantizer=dict(hwgq=dict(activation=dict(step='optimal'))))
  config.table.title = 'Ten classes of CIFAR-100, ResNet8, 10 epochs; the published figures are ResNet18, 100 classes'
  config.table.baseline = 'single2'
  config.table.runs = dict(
    rows.runs.to_dict(),
    cmtkd_gamma5=dict(feature_loss=dict(attention=dict(weight=5.0))),
    # Does it matter that the teachers are not good yet when the student learns from them?
    trained_teachers=dict(
      init_from='teacher1_4bit={single4},teacher2_6bit={single6},teacher3_8bit={single8}',
      **rows.runs.without_attention.to_dict(),
    ),
    single2_optimal=dict(optimal, **rows.runs.single2.to_dict()),
    without_attention_optimal=dict(optimal, **rows.runs.without_attention.to_dict()),
    cmtkd_optimal=optimal,
  )
  published = base.load_config(__file__, '../configs/table2_resnet18_cifar100').table.lines
  more = (
    ('CMT-KD, gamma 5 for 100', 'cmtkd_gamma5', 'student'),
    ('combined teacher, gamma 5 for 100', 'cmtkd_gamma5', 'combined_teacher'),
    ('combined teacher without attention', 'without_attention', 'combined_teacher'),
    ('combined teacher without mutual learning', 'without_mutual_learning', 'combined_teacher'),
    ('CMT-KD without attention, teachers trained before', 'trained_teachers', 'student'),
    ('combined teacher of that', 'trained_teachers', 'combined_teacher'),
    ('single model, optimal step', 'single2_optimal', 'student'),
    ('CMT-KD without attention, optimal step', 'without_attention_optimal', 'student'),
    ('CMT-KD, optimal step', 'cmtkd_optimal', 'student'),
  )
  config.table.lines = (
    *published,
    *(
      (title, '4, 6, 8' if network == 'combined_teacher' else '2/2', run, network, (None, None))
      for title, run, network in more
    ),
  )
  return base.apply_argument(config, argument, smoke=lambda c: base.smoke(c, 32))
