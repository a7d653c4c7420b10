"""Runs on a Ray cluster of several nodes, which are processes of this machine.

Needs the extra [ray]: `pytest -m ray`.
"""

import os
import signal
import subprocess
import sys
import time
import warnings

import pytest
from safetensors.torch import load_file

from harness.records.store import Store
from tests.conftest import ROOT, TOY

pytestmark = pytest.mark.ray
PATIENCE = 300  # seconds


@pytest.fixture(scope="module")
def cluster():
    """A head that runs nothing; tests add nodes."""
    pytest.importorskip("ray")
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setenv("RAY_worker_niceness", "0")
        from ray.cluster_utils import Cluster

        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        yield made
        made.shutdown()


@pytest.fixture
def node(cluster):
    """Adds nodes that leave after the test."""
    added = []

    def add(**options):
        added.append(cluster.add_node(**{"num_cpus": 1, **options}))
        return added[-1]

    yield add
    for each in added:
        if each in cluster.worker_nodes:
            cluster.remove_node(each)


def start(results, cluster, *options, methods="zero_shot", env=None):
    """A command that uses the cluster, or, where that is None, this machine."""
    where = ["--jobs", "1"] if cluster is None else ["--executor", "ray"]
    if cluster is not None:
        where += ["--address", cluster.address, "--cpus-per-run", "1"]
    return subprocess.Popen(
        [
            sys.executable, "-m", "harness", "run", "--methods", methods, "--tasks", "base2new",
            "--datasets", "toy", "--plugin", str(TOY), "--shots", "4", "--results", str(results),
            "--set", "engine.max_steps=2", *where, *options,
        ],
        cwd=ROOT, env=os.environ | (env or {}), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def finished(process):
    out, error = process.communicate(timeout=PATIENCE)
    return process.returncode, out, error


def wait_for(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert condition()


def written(folder):
    return [*folder.glob("base2new/*/*.json")]


def side_files(folder):
    return {path.relative_to(folder): load_file(path) for path in folder.rglob("*.safetensors")}


def test_a_lost_node_loses_no_run_and_all_results_are_those_of_a_local_command(
    cluster, node, tmp_path
):
    first, _ = node(), node()
    options, methods = ("--seeds", "1-3"), "adapter,zero_shot"
    process = start(tmp_path / "ray", cluster, *options, methods=methods)
    wait_for(lambda: len(written(tmp_path / "ray")) >= 2)
    cluster.remove_node(first, allow_graceful=False)
    code, out, error = finished(process)
    assert code == 0, error
    assert (out + error).count(": base ") == 6
    assert finished(start(tmp_path / "here", None, *options, methods=methods))[0] == 0
    there, here = ({r.key: r.scores for r in Store(tmp_path / name).records()}
                   for name in ("ray", "here"))  # fmt: skip
    assert there == here
    assert len(there) == 6
    remote, local = side_files(tmp_path / "ray"), side_files(tmp_path / "here")
    assert remote.keys() == local.keys()
    for path, tensors in remote.items():
        assert all(tensors[name].equal(local[path][name]) for name in tensors), path
    again = finished(start(tmp_path / "ray", cluster, *options, methods=methods))
    assert "to run: 0 of 6" in again[1]


def test_a_worker_with_other_code_of_a_plugin_is_refused_by_name(cluster, node, tmp_path):
    text = (ROOT / "methods" / "adapter.py").read_text()
    search = {}
    for folder, more in (("mine", ""), ("theirs", "\n\nOTHER = 1\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "my_method.py").write_text(text + more)
        paths = [str(tmp_path / folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        search[folder] = {"PYTHONPATH": os.pathsep.join(paths)}
    node(env_vars=search["theirs"])
    options = ("--plugin", "my_method")
    process = start(tmp_path / "r", cluster, *options, methods="my_method", env=search["mine"])
    code, _, error = finished(process)
    assert code == 2
    assert "refuses: my_method base2new toy seed 1 differs there in the code of the method" in error
    assert "0 of 1 runs are finished" in error
    assert written(tmp_path / "r") == []


def test_two_runs_share_a_declared_card_and_the_processor_computes(cluster, node, tmp_path):
    """Each worker waits, while it plans, until there are two of them on the card."""
    met = tmp_path / "met"
    met.mkdir()
    together = TOY.read_text().replace(
        "        def items(",
        "        import os, time\n"
        f"        met = Path({str(met)!r})\n"
        "        card = os.environ.get('CUDA_VISIBLE_DEVICES')\n"
        "        if card:\n"
        "            (met / f'{card} {os.getpid()}').touch()\n"
        f"            until = time.monotonic() + {PATIENCE}\n"
        "            while len(list(met.iterdir())) < 2 and time.monotonic() < until:\n"
        "                time.sleep(0.1)\n\n"
        "        def items(",
    )
    (tmp_path / "toys.py").write_text(together.replace("class Toy", "class Toys"))
    node(num_cpus=4, num_gpus=1)
    process = start(
        tmp_path / "r", cluster, "--plugin", str(tmp_path / "toys.py"), "--datasets", "toys",
        "--seeds", "1-2", "--gpus-per-run", "0.5",
    )  # fmt: skip
    code, _, error = finished(process)
    assert code == 0, error
    assert [path.name.split()[0] for path in met.iterdir()] == ["0", "0"]
    records = Store(tmp_path / "r").records()
    assert len(records) == 2
    assert not any("NVIDIA" in record.provenance["device"] for record in records)


def test_ctrl_c_keeps_what_is_finished(cluster, node, tmp_path):
    node()
    forever = [f"--set={name}=400000"
               for name in ("engine.max_steps", "engine.max_epochs", "dra.epochs")]  # fmt: skip
    process = start(tmp_path, cluster, *forever, methods="zero_shot,dra")
    wait_for(lambda: written(tmp_path))
    process.send_signal(signal.SIGINT)
    code, _, error = finished(process)
    assert code == 130
    assert "1 of 2 runs are finished and kept" in error
    assert [record.run["method"] for record in Store(tmp_path).records()] == ["zero_shot"]
    assert not [*tmp_path.rglob("*.tmp")]


def test_a_cluster_that_does_not_answer_is_said_in_a_sentence(tmp_path):
    pytest.importorskip("ray")
    nowhere = type("Nowhere", (), {"address": "127.0.0.1:9"})
    code, _, error = finished(start(tmp_path, nowhere))
    assert code == 2
    assert "no connection to a Ray cluster at 127.0.0.1:9: " in error
    assert "Traceback" not in error
