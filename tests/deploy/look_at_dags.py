"""look_at_dags.py DAGS BROKEN PARAMS: what Airflow says of a folder of DAGs, as JSON, and what becomes of a pod by its exit code.

One process for everything, because importing Airflow takes seconds.
"""

import json
import sys
from unittest import mock

from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from airflow.serialization.serialized_objects import DagSerialization
from kubernetes.client import ApiClient
from kubernetes.client import models as k8s


def about(dag, pods):
    return {
        "tasks": {task.task_id: sorted(task.downstream_task_ids) for task in dag.tasks},
        "max_active_runs": dag.max_active_runs,
        "catchup": dag.catchup,
        "deadlines": len(dag.deadline or []),
        "pools": sorted({task.pool for task in dag.tasks}),
        "retries": sorted({task.retries for task in dag.tasks}),
        "failures_are_told": all(task.has_on_failure_callback for task in dag.tasks),
        "without_timeout": [name for name in pods if name in dag.task_ids and not dag.get_task(name).execution_timeout],
        "serialized": bool(DagSerialization.to_dict(dag)),
    }


def pods_of(dag):
    pods = {}
    for task in dag.tasks:
        if hasattr(task, "build_pod_request_obj"):
            if not isinstance(task.arguments, list):
                task.arguments = ["(what another task gives)"]
            pods[task.task_id] = ApiClient().sanitize_for_serialization(task.build_pod_request_obj(dry_run=True))
    return pods


def end(task, code):
    """What a task does whose pod ended with a code."""

    def status(name, code):
        state = k8s.V1ContainerState(terminated=k8s.V1ContainerStateTerminated(exit_code=code))
        return k8s.V1ContainerStatus(name=name, state=state, image="", image_id="", ready=False, restart_count=0)

    pod = k8s.V1Pod(
        metadata=k8s.V1ObjectMeta(name="pod", namespace="icestream", annotations={}),
        spec=k8s.V1PodSpec(containers=[k8s.V1Container(name="base")]),
        status=k8s.V1PodStatus(
            phase="Succeeded" if code == 0 else "Failed",
            container_statuses=[status("airflow-xcom-sidecar", 0), status("base", code)],
        ),
    )
    kind = type(task)
    asks_the_cluster = {"process_pod_deletion": None, "patch_already_checked": None, "is_istio_enabled": False}
    asks_the_cluster |= {"_read_pod_container_states": None, "_read_pod_events": None}
    answers = {name: mock.Mock(return_value=answer) for name, answer in asks_the_cluster.items()}
    with mock.patch.multiple(kind, **answers):
        try:
            task.cleanup(pod, pod, xcom_result=None, context=None)
        except AirflowFailException as error:
            return f"fails at once: {error}"
        except AirflowException:
            return "is retried"
    return "succeeds"


def main():
    bag, broken = DagBag(sys.argv[1]), DagBag(sys.argv[2])
    pods = {dag_id: pods_of(dag) for dag_id, dag in bag.dags.items()}
    build, verify = (bag.dags["icestream"].get_task(name) for name in ("build", "verify"))
    backfill = sys.modules[bag.dags["icestream_backfill"].get_task("arguments").python_callable.__module__]
    found = {
        "errors": bag.import_errors,
        "broken": broken.import_errors,
        "pods": pods,
        "ends": {code: end(build, code) for code in (0, 1, 2, 3, 4, 137, 143)},
        "difference": end(verify, 1),
        "commands": [[params, backfill.backfill_arguments(params)] for params in json.loads(sys.argv[3])],
        "dags": {dag_id: about(dag, pods[dag_id]) for dag_id, dag in bag.dags.items()},
    }
    print("FOUND" + json.dumps(found, default=str))


if __name__ == "__main__":
    main()
