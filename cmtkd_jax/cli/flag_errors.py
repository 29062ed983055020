"""Turns exceptions of the flag libraries and of config files into one line that says how to fix them."""

import os
import re
import traceback

from absl import flags

from cmtkd_jax import config as config_lib
from cmtkd_jax.errors import UserError, one_line

_FIXES = {  # what Python says of values that flags cannot take -> what to do
  r'invalid literal for int\(\) with base 10: .*': 'give a whole number',
  r'could not convert string to float: .*': 'give a number',
  r'Error while parsing string: (.*) as tuple\. .*': r'\1 is not a tuple; write it as in Python, such as "(4, 8)"',
  r"\('Non-boolean argument to boolean flag', .*\)": 'give True or False',
  r'Found (.*) in argv before a value for --config was .*': r'\1 is read before --config; put --config=FILE first',
}


def describe(error, argv, path):
  """Returns the line for an exception of the flag libraries or of a config file; they wrap ours, and stack traces.

  Args:
    error: the exception.
    argv: arguments of the command.
    path: of the config file, '' for none.
  """
  ours, link = None, error
  while link is not None:
    ours, link = link if isinstance(link, UserError) else ours, link.__cause__ or link.__context__
  if ours:
    return str(ours)
  text = str(error).strip() or type(error).__name__
  for said, fix in _FIXES.items():
    text = re.sub(said, fix, text)
  if isinstance(error, flags.UnrecognizedFlagError):
    return _unknown_flag(error, argv)
  if isinstance(error, flags.Error) and 'config file' not in text:
    return one_line(text)
  if path and not os.path.isfile(path):
    return f'--config: there is no file {path}; name a config file, e.g. --config=configs/digits_resnet8.py'
  error, line = _raised_in(path, error)
  text = one_line(error.msg if isinstance(error, SyntaxError) else error)
  text = f'{type(error).__name__}: {text}' if text else type(error).__name__
  if not line and isinstance(error, AttributeError) and 'get_config' in text:
    return f'--config: {path} has no function get_config(); write one that returns the configuration'
  fix = 'fix the config file, or name another one'
  if isinstance(error, ModuleNotFoundError):
    fix = f'install the module, or set PYTHONPATH={os.path.dirname(path) or "."} if it is next to the config file'
  return f'--config: {path}{f", line {line}" if line else ""}: {text}; {fix}'


def _raised_in(path, error):
  """Returns the deepest exception in the chain of `error` that has a line of the file `path`, and that line.

  Where none has one, the deepest of all and 0.
  """
  same = lambda name: os.path.realpath(name) == os.path.realpath(path)
  chain = []
  while error is not None:
    chain.append(error)
    error = error.__cause__ or error.__context__
  for error in reversed(chain):
    if isinstance(error, SyntaxError) and error.filename and same(error.filename):
      return error, error.lineno
    if lines := [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if same(frame.filename)]:
      return error, lines[-1]
  return chain[-1], 0


def _unknown_flag(error, argv):
  name = error.flagname
  if match := re.match(r'(?:no)?(config\..*)', name):
    return (
      f'--{match[1]} changes a field of a config file, and --config is missing; give the file, too, e.g. '
      '--config=configs/digits_resnet8.py, or --config=configs/folder.py:DIR for images in folders'
    )
  if name in ('resume', 'noresume'):
    return f'--{name} is not a flag; the same command with the same --workdir resumes'
  if field := config_lib.suggest(name, settable=True):
    value = '...'
    if field == 'duration':
      given = re.search(rf'^--?{re.escape(name)}[=\n](.*)$', '\n'.join(argv), re.MULTILINE)
      number = re.match(r'[\d.]+', given[1]) if given else None
      value = f"'{number[0] if number else 3} {'steps' if 'step' in name else 'epochs'}'"
    return f'--{name} is not a flag; set the field: --config.{field}={value}'
  text = one_line(error)
  return text if 'Did you mean' in text else f'{text}; --help lists the flags'
