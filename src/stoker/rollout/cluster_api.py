"""A Kubernetes cluster, as deploys read it: Deployments, pods, metrics by way of the API server, Argo's Rollout.

Raises Unreachable for whatever the API server does not answer, or refuses.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

import httpx2
import lightkube
from lightkube.config import client_adapter
from lightkube.core.exceptions import ConfigError as KubeconfigError
from lightkube.generic_resource import create_namespaced_resource
from lightkube.resources.apps_v1 import Deployment
from lightkube.resources.core_v1 import Pod as PodResource
from lightkube.resources.core_v1 import Service

from stoker.errors import OperatorError
from stoker.rollout.cluster import Slot
from stoker.rollout.cluster_reading import HASH_LABEL, SLOT_LABEL, labels_of, pod_of, serving_slot, slot_of

INSTANCE: Final = "app.kubernetes.io/instance"
COMPONENT: Final = "app.kubernetes.io/component"
LOG_LINES: Final = 60
ARGO: Final[Any] = create_namespaced_resource(
    "argoproj.io", "v1alpha1", "Rollout", "rollouts", verbs=["get", "list", "patch"]
)
ARGO_STATUS: Final[Any] = ARGO.Status
MERGE: Final = lightkube.types.PatchType.MERGE


class Unreachable(OperatorError):
    """The API server did not answer as wanted."""

    code = "cluster_unreachable"


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except lightkube.ApiError as error:
        raise Unreachable(f"the cluster refused {what}: {error.status.message}") from None
    except httpx2.HTTPError as error:
        raise Unreachable(f"the cluster did not answer ({what}): {str(error) or type(error).__name__}") from None


class Kubernetes:
    """One release in a cluster.

    Args:
        release: its name.
        namespace: where it is; None for the one of the kubeconfig's context.
        context: of the kubeconfig; None for its current one.
    """

    def __init__(self, release: str, namespace: str | None, context: str | None) -> None:
        try:
            config = lightkube.KubeConfig.from_env().get(context)
        except (KubeconfigError, OSError) as error:
            raise OperatorError(f"no cluster can be reached: {error}; set KUBECONFIG or --kube-context") from None
        if config is None:
            raise OperatorError("no cluster can be reached: there is no kubeconfig; set KUBECONFIG")
        self.release = release
        self._client: Any = lightkube.Client(config=config, namespace=namespace)
        self.namespace: str = namespace or self._client.namespace
        # The typed client reads JSON alone, and metrics are text.
        self._plain: Any = client_adapter.Client(config, client_adapter.ConnectionParams())

    def close(self) -> None:
        """Give back the connections."""
        self._client.close()
        self._plain.close()

    def version(self) -> str:
        """The API server's, such as `v1.34.2`."""
        with _explained("its version"):
            answer = self._plain.get("/version")
            answer.raise_for_status()
            return str(answer.json()["gitVersion"])

    def slots(self) -> dict[str, Slot]:
        """The slots by name, as they are now."""
        with _explained("Deployments and pods"):
            deployments = self._list(Deployment, **{COMPONENT: "server"})
            pods = self._pods(**{COMPONENT: "server"})
        named = {labels_of(one)[SLOT_LABEL]: one for one in deployments if SLOT_LABEL in labels_of(one)}
        return {name: slot_of(name, deployment, pods) for name, deployment in named.items()}

    def serving(self) -> str | None:
        """The slot that the active Service selects now."""
        with _explained("Services"):
            return serving_slot(self._list(Service))

    def metrics(self, pod: str, port: int) -> str:
        """What a pod's `/metrics` says."""
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}:{port}/proxy/metrics"
        with _explained(f"metrics of {pod}"):
            answer = self._plain.get(path)
            answer.raise_for_status()
            return str(answer.text)

    def gate_log(self) -> str:
        """The last lines of the newest gate's pod; empty where there is none."""
        with _explained("the gate's log"):
            pods = sorted(self._pods(**{COMPONENT: "gate"}), key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
            if not pods:
                return ""
            return "\n".join(
                line.rstrip() for line in self._client.log(pods[-1]["metadata"]["name"], tail_lines=LOG_LINES)
            )

    def argo(self) -> Mapping[str, Any]:
        """The release's Argo Rollout."""
        with _explained("Rollouts (argoproj.io)"):
            found = self._list(ARGO)
        if not found:
            raise Unreachable(f"there is no Rollout of release {self.release} in namespace {self.namespace}")
        return found[0]

    def argo_slot(self, pods_hash: str) -> Slot:
        """The pods of one version of the Rollout, as a slot."""
        with _explained("pods"):
            pods = self._pods(**{COMPONENT: "server", HASH_LABEL: pods_hash})
        own = tuple(pod_of(pod) for pod in pods if not pod["metadata"].get("deletionTimestamp"))
        return Slot(pods_hash, len(own), sum(pod.ready for pod in own), settled=True, pods=own)

    def argo_promote(self) -> None:
        """Let a Rollout go on that waits."""
        self._argo_patch({"status": {"pauseConditions": None, "controllerPause": False}})

    def argo_abort(self) -> None:
        """Have a Rollout give up the version that does not serve yet."""
        self._argo_patch({"status": {"abort": True}})

    def _argo_patch(self, change: Mapping[str, Any]) -> None:
        name = self.argo()["metadata"]["name"]
        with _explained(f"a change of Rollout {name}"):
            self._client.patch(ARGO_STATUS, name, change, patch_type=MERGE)

    def _pods(self, **labels: str) -> list[dict[str, Any]]:
        return self._list(PodResource, **labels)

    def _list(self, kind: Any, **labels: str) -> list[dict[str, Any]]:
        found = self._client.list(kind, labels={INSTANCE: self.release, **labels})
        return [one.to_dict() for one in found]
