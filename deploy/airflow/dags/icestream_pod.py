"""One pod per verb of icestream, and what its exit code means to Airflow.

| exit code    | what it says                      | the task                                              |
|--------------|-----------------------------------|-------------------------------------------------------|
| 0            | done, or there was nothing to do  | succeeds; what `--result` says is its XCom            |
| 3            | something was unavailable         | is retried                                            |
| 2            | usage or configuration            | fails at once: somebody has to mend the project       |
| 4            | a quality rule or an audit failed | fails at once: somebody has to mend the data          |
| 1, any other | failed, killed, out of memory     | is retried                                            |

Retrying is always safe: what a verb has done stands in the tables, and the next attempt goes on from there. Two pods of
one project at once, such as a retry beside a zombie, do the work once.
"""

from __future__ import annotations

import os
from datetime import timedelta

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.cncf.kubernetes.secret import Secret
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from icestream_alerts import tell_failure
from kubernetes.client import models as k8s

LASTING = {2: "usage or configuration", 4: "a quality rule or an audit failed"}

# The file that Airflow's sidecar reads when a pod's container has ended.
RESULT = ["--result", "/airflow/xcom/return.json"]


def setting(name: str, default: str) -> str:
    """A setting of the deployment, from the environment of Airflow's own containers. Empty is a value."""
    return os.environ.get(f"ICESTREAM_AIRFLOW_{name}", default)


# One slot, so that runs of all DAGs queue: airflow pools set icestream 1 'one pod at a time'
DEFAULT_ARGS = {
    "pool": setting("POOL", "icestream"),
    "retries": 4,
    "retry_delay": timedelta(minutes=1),
    "retry_exponential_backoff": True,
    "max_retry_delay": timedelta(minutes=30),
    "on_failure_callback": tell_failure,
}


class IcestreamOperator(KubernetesPodOperator):
    """Runs one verb to its end; `arguments` are those of the command line.

    The provider can make a skipped task of an exit code (`skip_on_exit_code`), and retries every other failure. Codes
    that no retry mends are told apart in `cleanup`, which the synchronous and the deferrable way both end in.
    """

    def __init__(
        self,
        *,
        arguments: list[str],
        do_xcom_push: bool | None = None,
        lasting: dict[int, str] = LASTING,
        **kwargs,
    ):
        volumes, mounts = project(setting("PROJECT", "icestream-project"))
        super().__init__(
            name="icestream-" + kwargs["task_id"].replace("_", "-"),
            image=setting("IMAGE", "icestream:dev"),
            arguments=arguments,
            namespace=setting("NAMESPACE", "icestream"),
            # The chart makes it; on EKS it takes the role of deploy/terraform.
            service_account_name=setting("SERVICE_ACCOUNT", "icestream"),
            # Secrets whose keys are the variables that icestream.yaml names: KAFKA_PASSWORD and the like.
            secrets=[Secret("env", None, name) for name in setting("SECRETS", "").split(",") if name],
            env_vars={"ICESTREAM_LOG_FORMAT": "json"},
            volumes=volumes,
            volume_mounts=mounts,
            # `memory` in icestream.yaml, and what a process needs besides.
            container_resources=k8s.V1ResourceRequirements(
                requests={"cpu": "1", "memory": "3Gi"}, limits={"memory": "3Gi"}
            ),
            security_context=k8s.V1PodSecurityContext(
                run_as_non_root=True,
                run_as_user=65532,
                run_as_group=65532,
                seccomp_profile=k8s.V1SeccompProfile(type="RuntimeDefault"),
            ),
            container_security_context=k8s.V1SecurityContext(
                allow_privilege_escalation=False,
                read_only_root_filesystem=True,
                capabilities=k8s.V1Capabilities(drop=["ALL"]),
            ),
            # SIGTERM commits what was read. With it a pod ends when its task is stopped or times out.
            termination_grace_period=120,
            do_xcom_push="--result" in arguments if do_xcom_push is None else do_xcom_push,
            on_finish_action="delete_succeeded_pod",
            # A worker that died finds its pod again, and does not start another.
            reattach_on_restart=True,
            **kwargs,
        )
        self.lasting = lasting

    def cleanup(self, pod, remote_pod, xcom_result=None, context=None) -> None:
        try:
            super().cleanup(pod, remote_pod, xcom_result=xcom_result, context=context)
        except AirflowException as failure:
            code = exit_code(remote_pod, self.base_container_name)
            if code in self.lasting:
                raise AirflowFailException(f"exit code {code}: {self.lasting[code]}; a retry cannot help") from failure
            raise


def exit_code(pod: k8s.V1Pod | None, container: str) -> int | None:
    """What a container ended with; None where it did not end by itself, or nobody knows."""
    statuses = (pod.status.container_statuses if pod and pod.status else None) or []
    ended = [status.state.terminated for status in statuses if status.name == container and status.state]
    return ended[0].exit_code if ended and ended[0] else None


def project(name: str) -> tuple[list[k8s.V1Volume], list[k8s.V1VolumeMount]]:
    """Room for what is spilled, and the project from the config maps that the chart makes, one for each folder.

    Without a name the image has the project itself.
    """
    volumes = [k8s.V1Volume(name="tmp", empty_dir=k8s.V1EmptyDirVolumeSource(size_limit="20Gi"))]
    mounts = [k8s.V1VolumeMount(name="tmp", mount_path="/tmp")]
    if not name:
        return volumes, mounts
    folders = {"": None, "-catalog": "catalog", "-transforms": "transforms", "-gold": "sql/gold", "-audits": "sql/audits"}
    for suffix, folder in folders.items():
        volume = f"project{suffix}"
        source = k8s.V1ConfigMapVolumeSource(name=name + suffix, optional=folder is not None)
        volumes.append(k8s.V1Volume(name=volume, config_map=source))
        file = None if folder else "icestream.yaml"
        mounts.append(
            k8s.V1VolumeMount(name=volume, mount_path=f"/project/{folder or file}", sub_path=file, read_only=True)
        )
    return volumes, mounts
