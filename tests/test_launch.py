"""The launch scripts: shellcheck, where it is installed, and what the Kubernetes file says, against its schema."""

import pathlib
import shutil
import subprocess

import pytest
import yaml

LAUNCH = pathlib.Path(__file__).resolve().parents[1] / 'launch'


@pytest.mark.e2e
@pytest.mark.parametrize('script', [*LAUNCH.glob('*.sh'), LAUNCH / 'slurm.sbatch'], ids=lambda path: path.name)
def test_scripts_parse_and_pass_shellcheck(script):
  subprocess.run(['bash', '-n', script], check=True)
  if shellcheck := shutil.which('shellcheck'):
    result = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_pods_of_the_job_set_find_each_other():
  """The number of pods is the same wherever it stands, and the coordinator is the first of them."""
  job_set = yaml.safe_load((LAUNCH / 'k8s_jobset.yaml').read_text())
  assert (job_set['apiVersion'], job_set['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
  (job,) = job_set['spec']['replicatedJobs']
  spec = job['template']['spec']
  (container,) = spec['template']['spec']['containers']
  variables = {entry['name']: entry.get('value') for entry in container['env']}
  assert spec['completionMode'] == 'Indexed' and job['replicas'] == 1
  assert spec['parallelism'] == spec['completions'] == int(variables['JAX_NUM_PROCESSES'])
  name = job_set['metadata']['name']
  assert variables['JAX_COORDINATOR_ADDRESS'].startswith(f'{name}-{job["name"]}-0-0.{name}:')
  mounts = {mount['name'] for mount in container['volumeMounts']}
  assert mounts == {volume['name'] for volume in spec['template']['spec']['volumes']}
  assert container['command'][:3] == ['python', '-m', 'cmtkd_jax.main']


# Fields of a JobSet down to the Job in it: jobset.x-k8s.io_jobsets.yaml of kubernetes-sigs/jobset, v1alpha2.
JOB_SET = {'apiVersion', 'kind', 'metadata', 'spec'}
SPEC = {
  'coordinator',
  'failurePolicy',
  'managedBy',
  'network',
  'replicatedJobs',
  'startupPolicy',
  'successPolicy',
  'suspend',
  'ttlSecondsAfterFinished',
}
REPLICATED_JOB = {'dependsOn', 'groupName', 'name', 'replicas', 'template'}
FAILURE_POLICY = {'maxRestarts', 'restartStrategy', 'rules'}


def test_job_set_follows_its_schema():
  models = pytest.importorskip('kubernetes.client', reason='its models are the schema')
  if not hasattr(models.V1JobTemplateSpec, 'model_validate'):
    pytest.skip('kubernetes is older than its pydantic models')
  job_set = yaml.safe_load((LAUNCH / 'k8s_jobset.yaml').read_text())
  spec = job_set['spec']
  assert job_set.keys() == JOB_SET and spec.keys() <= SPEC and spec['failurePolicy'].keys() <= FAILURE_POLICY
  assert type(spec['failurePolicy']['maxRestarts']) is int
  for job in spec['replicatedJobs']:
    assert {'name', 'template'} <= job.keys() <= REPLICATED_JOB and type(job['replicas']) is int
    models.V1JobTemplateSpec.model_validate(job['template'], strict=True, extra='forbid')


@pytest.mark.e2e
def test_several_gpus_where_there_are_none(tmp_path):
  """One line that says what to do instead, since a GPU each is what the script is for."""
  (tmp_path / 'dirname').symlink_to(shutil.which('dirname'))
  run = subprocess.run(
    [shutil.which('bash'), str(LAUNCH / 'multi_gpu.sh'), '--config=x'],
    env={'PATH': str(tmp_path), 'HOME': str(tmp_path)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert run.returncode == 2
  assert run.stderr == ('error: there is no nvidia-smi to count the GPUs; set GPUS=N, or use launch/single_host.sh\n')
