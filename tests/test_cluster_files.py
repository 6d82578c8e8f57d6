"""The files of ``cluster/``, as far as they can be tested without a cloud."""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from qwr_rllib.prometheus import METRICS, TAGS

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
IMAGE = "registry.example.com/qwr-rllib:latest"

# The fields of KubeRay's custom resources (ray.io/v1, KubeRay 1.6) and of pods that the manifests
# use, with their types; any other field is an error.
TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}


def fields(required: str = "", **properties) -> dict:
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


QUANTITIES = {"type": "object", "additionalProperties": TEXT}
CONTAINER = fields(
    "name image resources",
    name=TEXT,
    image=TEXT,
    resources=fields("requests limits", requests=QUANTITIES, limits=QUANTITIES),
    volumeMounts={"type": "array", "items": fields("name mountPath", name=TEXT, mountPath=TEXT)},
)
VOLUME = fields("name", name=TEXT, persistentVolumeClaim=fields("claimName", claimName=TEXT))
POD = fields(
    "spec",
    spec=fields(
        "containers",
        containers={"type": "array", "minItems": 1, "items": CONTAINER},
        volumes={"type": "array", "items": VOLUME},
    ),
)
START_PARAMS = {"type": "object", "additionalProperties": {"type": "string"}}
RAY_CLUSTER = fields(
    "rayVersion headGroupSpec authOptions",
    rayVersion=TEXT,
    authOptions=fields("mode", mode={"enum": ["token"]}),
    enableInTreeAutoscaling={"type": "boolean"},
    headGroupSpec=fields("rayStartParams template", rayStartParams=START_PARAMS, template=POD),
    workerGroupSpecs={
        "type": "array",
        "items": fields(
            "groupName minReplicas maxReplicas rayStartParams template",
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=START_PARAMS,
            template=POD,
        ),
    },
)
RAY_JOB = fields(
    "entrypoint rayClusterSpec",
    entrypoint=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
    shutdownAfterJobFinishes={"type": "boolean"},
    ttlSecondsAfterFinished=COUNT,
    backoffLimit=COUNT,
    rayClusterSpec=RAY_CLUSTER,
)


def manifest(kind: str, spec: dict) -> dict:
    return fields(
        "apiVersion kind metadata spec",
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=fields("name", name=TEXT),
        spec=spec,
    )


def load(path: str) -> dict:
    return yaml.safe_load((CLUSTER / path).read_text())


@pytest.mark.parametrize("name", ["aws", "gcp", "on-premise"])
def test_launcher_files_are_what_ray_takes(name):
    config = load(f"launcher/{name}.yaml")
    validate_config(prepare_config(dict(config)))
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepare_config(config | {"max_worker": 2}))
    # The token is a file, authentication is on, and the dashboard is reachable on the head only.
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    for command in starts:
        if "ray start" in command:
            assert "RAY_AUTH_MODE=token" in command
        if "--head" in command:
            assert "--dashboard-host=127.0.0.1" in command
    if "docker" in config:
        assert config["docker"]["image"] == IMAGE


@pytest.mark.parametrize(("kind", "spec"), [("RayCluster", RAY_CLUSTER), ("RayJob", RAY_JOB)])
def test_manifests_use_fields_that_exist(kind, spec):
    document = load(f"kuberay/{kind.lower()}.yaml")
    schema = manifest(kind, spec)
    jsonschema.validate(document, schema)
    document["spec"]["entrypont"] = "x"
    with pytest.raises(jsonschema.ValidationError, match="entrypont"):
        jsonschema.validate(document, schema)


def pods() -> list[dict]:
    of_cluster = load("kuberay/raycluster.yaml")["spec"]
    of_job = load("kuberay/rayjob.yaml")["spec"]["rayClusterSpec"]
    groups = [
        group
        for spec in (of_cluster, of_job)
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])
    ]
    return [group["template"]["spec"] for group in groups]


def test_pods_share_the_image_and_the_results_volume():
    claim = load("kuberay/results-volume.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods():
        (container,), (volume,) = pod["containers"], pod["volumes"]
        assert container["image"] == IMAGE
        assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/results"}]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_the_job_trains_an_example_of_the_image():
    entrypoint = load("kuberay/rayjob.yaml")["spec"]["entrypoint"]
    command = re.fullmatch(r"rllib train file /home/ray/qwr-rllib/(\S+) (.*)", entrypoint.strip())
    assert command is not None
    assert (ROOT / command[1]).is_file()
    assert "--storage-path /results" in command[2]


def test_the_dockerfile_copies_what_there_is():
    copied = re.findall(r"^COPY (.*) \S+$", (CLUSTER / "Dockerfile").read_text(), re.MULTILINE)
    names = [name for line in copied for name in line.split()]
    assert {"pyproject.toml", "qwr_rllib", "tuned_examples"} <= set(names)
    assert all((ROOT / name).exists() for name in names)


def test_no_secret_is_in_a_file():
    for path in filter(Path.is_file, CLUSTER.rglob("*")):
        text = path.read_text()
        assert not re.search(r"(?i)(password|secret_?key|api_?key)\s*[:=]\s*\S", text), path
        assert not re.search(r"RAY_AUTH_TOKEN[:=]", text), path
        assert not re.search(r"\b[0-9a-f]{32,}\b", text), path


SCRIPT = CLUSTER / "slurm" / "train.sbatch"


def test_the_slurm_script_is_clean_shell():
    beside_python = os.path.dirname(sys.executable)
    shellcheck = shutil.which("shellcheck", path=f"{beside_python}:{os.environ['PATH']}")
    assert shellcheck, "shellcheck comes with the extra `test`"
    subprocess.run([shellcheck, SCRIPT], check=True)
    assert SCRIPT.stat().st_mode & stat.S_IXUSR


SRUN = """#!/bin/bash
printf '%s\\n' "$@" > "$SEEN"
stat -c %a "$RAY_AUTH_TOKEN_PATH" >> "$SEEN"
exit ${SRUN_EXIT:-0}
"""


@pytest.mark.parametrize("code", [0, 3])
def test_the_slurm_script_starts_a_cluster_with_a_token(tmp_path, code):
    for name, text in (("srun", SRUN), ("scontrol", "#!/bin/bash\necho node1\necho node2\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "SEEN": str(tmp_path / "seen"),
        "SRUN_EXIT": str(code),
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_PER_TASK": "16",
    }
    done = subprocess.run([SCRIPT, "a file.yaml", "--resume"], env=environment)
    assert done.returncode == code
    *arguments, mode = (tmp_path / "seen").read_text().splitlines()
    start = arguments[arguments.index("ray") :]
    assert start[1:4] == ["symmetric-run", "--address", "node1:10007"]
    command = start[start.index("--") + 1 :]
    assert command[:2] == ["bash", "-c"]
    assert command[2].endswith('exec rllib train file "$@"')
    assert command[4:] == ["a file.yaml", "--resume", "--ray-address", "node1:10007"]
    assert mode == "600"
    assert len((tmp_path / ".ray" / "auth_token").read_text()) == 64


# Runs the command; a signal ends this, like `ray symmetric-run`, before the command has saved.
RUN = """#!/usr/bin/env python3
import signal, subprocess, sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background ignore it
sys.exit(subprocess.run(sys.argv[sys.argv.index("--") + 1 :]).returncode)
"""
TRAIN = """#!/usr/bin/env python3
import signal, sys, time

saved = lambda *_: sys.exit(print(*sys.argv[1:], file=open("saved", "w")) or 130)
signal.signal(signal.SIGINT, saved)
open("began", "w").close()
time.sleep(600)
"""


def test_the_interrupt_before_a_slurm_jobs_end_reaches_the_command_alone(tmp_path):
    stubs = {"srun": RUN, "rllib": TRAIN, "scontrol": "#!/bin/bash\necho node1\n"}
    for name, text in stubs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.path.dirname(sys.executable)}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "QWR_VENV": str(tmp_path / "none"),
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_NODELIST": "node1",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_PER_TASK": "16",
    }
    before = {*tmp_path.iterdir(), tmp_path / ".ray", tmp_path / "began", tmp_path / "saved"}
    # A shell cannot trap a signal that it was started to ignore, as background jobs ignore SIGINT.
    with subprocess.Popen(
        [SCRIPT, "a file.yaml"],
        env=environment,
        cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as job:
        deadline = time.monotonic() + 300
        while not (tmp_path / "began").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        job.send_signal(signal.SIGINT)
        assert job.wait(timeout=300) == 130
    expected = "train file a file.yaml --ray-address node1:10007\n"
    assert (tmp_path / "saved").read_text() == expected
    assert set(tmp_path.iterdir()) == before  # nothing is left behind


# Jobs a and b create a token at the same time; b finishes after a has started Ray.
OD = """#!/bin/bash
if [[ $JOB == a ]]; then
  until [[ -e $HOME/began ]]; do sleep 0.05; done
else
  touch "$HOME/began"
  until [[ -s $HOME/seen-a ]]; do sleep 0.05; done
fi
printf "$JOB%.0s" {1..64}
"""


def test_slurm_jobs_that_start_at_once_have_the_same_token(tmp_path):
    stubs = {
        "od": OD,
        "scontrol": "#!/bin/bash\necho node1\n",
        "srun": '#!/bin/bash\ncat "$RAY_AUTH_TOKEN_PATH" > "$HOME/seen-$JOB"\n',
    }
    for name, text in stubs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_NODELIST": "node1",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_PER_TASK": "16",
    }
    jobs = [subprocess.Popen([SCRIPT, "file.yaml"], env=environment | {"JOB": job}) for job in "ab"]
    assert [job.wait(timeout=300) for job in jobs] == [0, 0]
    assert (tmp_path / "seen-a").read_text() == (tmp_path / "seen-b").read_text() == "a" * 64
    assert [path.name for path in (tmp_path / ".ray").iterdir()] == ["auth_token"]


def test_nothing_is_run_that_was_just_downloaded():
    piped = re.compile(r"(curl|wget)[^#\n]*\|\s*(sudo\s+)?(ba|z)?sh\b")
    for path in CLUSTER.rglob("*"):
        if path.is_file():
            assert not piped.search(path.read_text()), path


def test_the_slurm_script_says_how_it_is_used(tmp_path):
    done = subprocess.run([SCRIPT], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")


def used_metrics(text: str) -> set[str]:
    return set(re.findall(r"\bray_qwr_\w+", text))


def test_grafana_and_the_alerts_know_the_metrics():
    exported = {metric.exported_name for metric in METRICS}
    dashboard = json.loads((CLUSTER / "grafana" / "qwr.json").read_text())
    expressions = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])
    ]
    # The dashboard shows each metric and no unknown one.
    assert used_metrics(" ".join(expressions)) == exported
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert {each["name"] for each in dashboard["templating"]["list"]} == set(TAGS)
    assert used_metrics((CLUSTER / "prometheus" / "alerts.yml").read_text()) <= exported


def test_every_metric_is_documented():
    text = (ROOT / "docs" / "metrics.md").read_text()
    documented = set(re.findall(r"`(qwr_\w+)`", text))
    assert documented == {metric.name for metric in METRICS}


def test_prometheus_reads_rays_discovery_file():
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    (job,) = load("prometheus/prometheus.yml")["scrape_configs"]
    ((file,),) = [each["files"] for each in job["file_sd_configs"]]
    assert Path(file).name == PROMETHEUS_SERVICE_DISCOVERY_FILE
    (rules,) = load("prometheus/prometheus.yml")["rule_files"]
    assert (CLUSTER / "prometheus" / rules).is_file()
