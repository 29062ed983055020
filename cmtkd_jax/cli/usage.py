"""The text of `--help`: what the program does, commands to start with, every mode and flag."""

_START = """\
Trains networks of 1 to 4 bits together with teachers of more bits (CMT-KD), evaluates and exports them.

usage: python -m cmtkd_jax.main --config=FILE [--workdir=DIR] [--mode=MODE] [--config.FIELD=VALUE ...]
       python -m cmtkd_jax.main --mode=evaluate|report|export|predict --workdir=DIR

commands to start with:
  python -m cmtkd_jax.main --config=configs/digits_resnet8.py                     train, in minutes on a CPU
  python -m cmtkd_jax.main --config=configs/folder.py:DIR                         your images, DIR/<class>/
  python -m cmtkd_jax.main --mode=config --config=configs/digits_resnet8.py       what can be changed
  python -m cmtkd_jax.main --mode=report --workdir=runs/digits_resnet8            the run as an HTML page
  python -m cmtkd_jax.main --mode=export --workdir=runs/digits_resnet8            files to deploy
  python -m cmtkd_jax.main --mode=predict --workdir=runs/digits_resnet8 a.png     classes of images

modes:"""
_END = """
README.md explains the rest. The repository's configs/README.md lists config files and variants like FILE:smoke."""


def text(modes, flags):
  """Returns the text.

  Args:
    modes: {name: function whose docstring begins with what the mode does}.
    flags: of absl, [flag], each with name and help.
  """
  width = max(map(len, [*modes, *(f'--{flag.name}' for flag in flags)]))

  def line(name, help):
    first = (help or '').partition('\n')[0]  # python -OO leaves docstrings out
    return f'  {name.ljust(width)}  {first.rstrip(".")}'

  return '\n'.join(
    [
      _START,
      *(line(name, function.__doc__) for name, function in modes.items()),
      '',
      'flags:',
      *(line(f'--{flag.name}', flag.help) for flag in flags),
      _END,
    ]
  )
