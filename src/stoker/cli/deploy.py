"""`stoker deploy`: a new image or model takes over in a release on Kubernetes, evaluated and watched; and back."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from stoker.cli.jobs import AsJson
from stoker.cli.progress import output, print_json
from stoker.cli.words import duration
from stoker.errors import ConfigError, OperatorError, StokerError

if TYPE_CHECKING:  # imported when they are needed, for a quick --help
    from stoker.rollout.cluster import Deploy, Wish
    from stoker.rollout.cluster_api import Kubernetes
    from stoker.rollout.cluster_drive import Cluster, Found
    from stoker.rollout.cluster_helm import Helm
    from stoker.rollout.cluster_values import Values

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="On Kubernetes: have a new image or model take over without a gap; watch it, take it back.",
)

CHART: Final = "deploy/helm/stoker"
INTERRUPTED: Final = 130
BAKE: Final = "10m"
READY_WITHIN: Final = "15m"


def _seconds(text: str) -> float:
    """Seconds: `90s`, `10m`, `1h`, `0`."""
    return 0.0 if text.strip() in {"0", "0s"} else duration(text)


ReleaseName = Annotated[str, typer.Argument(metavar="RELEASE", help="The Helm release.")]
Chart = Annotated[
    str, typer.Option(envvar="STOKER_CHART", help="The chart: a directory, a package, or an address that Helm takes.")
]
Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Where the release is.", show_default="the context's")
]
Context = Annotated[
    str | None, typer.Option("--kube-context", help="Of the kubeconfig.", show_default="its current one")
]
TakeOver = Annotated[
    bool, typer.Option("--take-over", help="Do not wait for an upgrade that is under way: nobody works at it any more.")
]
Bake = Annotated[
    float,
    typer.Option(
        parser=_seconds,
        metavar="TIME",
        help="How long the old slot stays warm after the switch, and both are compared.",
    ),
]
ReadyWithin = Annotated[
    float, typer.Option(parser=_seconds, metavar="TIME", help="How long the new slot may take to be ready.")
]


@dataclass(frozen=True, slots=True)
class Site:
    """A release, as Helm and the cluster have it."""

    helm: Helm
    kubernetes: Kubernetes

    def cluster(self, *, argo: bool) -> Cluster:
        """The cluster as a driver sees it."""
        from stoker.rollout.cluster_argo import ArgoSlots

        return ArgoSlots(self.kubernetes) if argo else self.kubernetes

    def found(self) -> Found:
        """The release as it stands."""
        from stoker.rollout.cluster_drive import Found

        return Found(self.helm)


@app.command()
def start(
    release: ReleaseName,
    *,
    image: Annotated[
        str | None, typer.Option(metavar="REPO:TAG[@sha256:...]", help="The new image.", show_default="as it serves")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="The new model: a source such as hf:..., a file's path in the image or on the claim, an image volume.",
            show_default="as it serves",
        ),
    ] = None,
    sha256: Annotated[
        str | None, typer.Option(help="Digest that the fetched model must have.", show_default=False)
    ] = None,
    set_file: Annotated[
        Path | None,
        typer.Option("--set-file", "--set", help="An evaluation set for the gate.", show_default="as in the values"),
    ] = None,
    bake: Bake = BAKE,  # type: ignore[assignment] # parsed
    ready_within: ReadyWithin = READY_WITHIN,  # type: ignore[assignment] # parsed
    no_gate: Annotated[bool, typer.Option("--no-gate", help="Let it take over untested.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    chart: Chart = CHART,
    namespace: Namespace = None,
    kube_context: Context = None,
    as_json: AsJson = False,
) -> None:
    """Fill the idle slot, wait until it is ready, have it pass the gate, switch, watch it, and scale the old slot down.

    Requests are answered all the time. A version that fails leaves everything as it was; one that does worse than the
    old one while it bakes is taken back. Whoever was killed goes on with `stoker deploy resume`.

    Exit status: 0 when it serves, 1 otherwise, 2 when the command is wrong, 130 when interrupted.

    For example:

    - `stoker deploy start chat --image registry.example.com/chat:2`

    - `stoker deploy start chat --model hf:org/repo/chat-v2.gguf@3f1c --sha256 5a49... --set-file set.yaml --bake 30m`

    - `stoker deploy start chat --image chat:2 --dry-run`
    """
    from stoker.rollout.cluster_begin import ordered
    from stoker.rollout.cluster_values import Order

    order = Order(
        image=image,
        model=model,
        sha256=sha256,
        the_set=_set_text(set_file),
        gate=not no_gate,
        bake=bake,
        load_within=ready_within,
    )
    if image is None and model is None:
        raise ConfigError("nothing new is named: give --image, --model or both")
    with _site(release, chart, namespace, kube_context) as site:
        found = site.found()
        deploy, values = ordered(site.kubernetes, found, order)
        if dry_run:
            _show_plan(site, found, deploy, values, as_json=as_json)
            return
        if not yes and sys.stdin.isatty():
            typer.confirm(
                f"{deploy.title} takes over in {deploy.new}; {deploy.old} serves until then. Go on?", abort=True
            )
        site.helm.upgrade(values, f"stoker deploy {deploy.id}: {deploy.title} into {deploy.new}")
        _drive(site, release, as_json=as_json)


@app.command()
def resume(
    release: ReleaseName,
    *,
    take_over: TakeOver = False,
    chart: Chart = CHART,
    namespace: Namespace = None,
    kube_context: Context = None,
    as_json: AsJson = False,
) -> None:
    """Go on with a deploy whose command has ended. Example: `stoker deploy resume chat`"""
    with _site(release, chart, namespace, kube_context) as site:
        _free(site, take_over=take_over)
        if (deploy := site.found().deploy) is None or deploy.ended:
            raise StokerError("no deploy is under way; `stoker deploy start RELEASE --image ...` begins one")
        _drive(site, release, as_json=as_json)


@app.command()
def rollback(
    release: ReleaseName,
    *,
    ready_within: ReadyWithin = READY_WITHIN,  # type: ignore[assignment] # parsed
    take_over: TakeOver = False,
    chart: Chart = CHART,
    namespace: Namespace = None,
    kube_context: Context = None,
    as_json: AsJson = False,
) -> None:
    """Go back to the other slot, at once or when it is ready again. Example: `stoker deploy rollback chat`"""
    from stoker.rollout.cluster_begin import backwards

    with _site(release, chart, namespace, kube_context) as site:
        _free(site, take_over=take_over)
        found = site.found()
        if found.deploy is not None and not found.deploy.ended:
            _drive(site, release, wish="rollback", as_json=as_json)
            return
        deploy, values = backwards(site.kubernetes, found, ready_within)
        site.helm.upgrade(values, f"stoker deploy {deploy.id}: {deploy.title}")
        _drive(site, release, as_json=as_json)


@app.command()
def abort(
    release: ReleaseName,
    *,
    take_over: TakeOver = False,
    chart: Chart = CHART,
    namespace: Namespace = None,
    kube_context: Context = None,
    as_json: AsJson = False,
) -> None:
    """End a deploy that is under way: the old slot serves, or serves again. Example: `stoker deploy abort chat`"""
    with _site(release, chart, namespace, kube_context) as site:
        _free(site, take_over=take_over)
        if (deploy := site.found().deploy) is None or deploy.ended:
            raise StokerError("no deploy is under way, so there is nothing to end")
        _drive(site, release, wish="abort", as_json=as_json)


@app.command()
def status(
    release: ReleaseName,
    *,
    namespace: Namespace = None,
    kube_context: Context = None,
    as_json: AsJson = False,
) -> None:
    """Show who serves, and how a deploy stands. Example: `stoker deploy status chat`"""
    from stoker.cli.deploy_view import facts

    with _site(release, "", namespace, kube_context) as site:
        found = site.found()
        cluster = site.cluster(argo=found.argo)
        slots, serving = cluster.slots(), cluster.serving() or "nobody"
    if as_json:
        told = {name: {"wanted": one.wanted, "ready": one.ready, "trouble": one.trouble} for name, one in slots.items()}
        record = found.deploy.saved() if found.deploy else None
        pending = found.standing.pending_since is not None
        print_json({"serves": serving, "slots": told, "deploy": record, "upgrading": pending})
        return
    output().print(facts(found.deploy, serving, slots, now=time.time()))
    if found.standing.pending_since is not None:
        typer.echo("an upgrade of the release is under way, or was broken off")
    if found.deploy is not None and not found.deploy.ended:
        typer.echo(f"`stoker deploy resume {release}` goes on with it where its command has ended; `abort` ends it")


@app.command()
def history(
    release: ReleaseName,
    *,
    namespace: Namespace = None,
    kube_context: Context = None,
    as_json: AsJson = False,
) -> None:
    """List the deploys that the release remembers, the newest first. Example: `stoker deploy history chat --json`"""
    from stoker.cli.deploy_view import documents, table_of
    from stoker.rollout.cluster import Deploy

    deploys = []
    with _site(release, "", namespace, kube_context) as site:
        for revision in site.helm.history():
            if revision.status in {"deployed", "superseded"}:
                with contextlib.suppress(ValueError):
                    deploys.append(Deploy.parse(site.helm.values(revision.number).get("deploy")))
    told = documents([deploy for deploy in deploys if deploy is not None])
    if as_json:
        print_json({"data": told})
    elif told:
        output().print(table_of(told))
    else:
        typer.echo("there has been no deploy; `stoker deploy start RELEASE --image ...` begins one")


@contextlib.contextmanager
def _site(release: str, chart: str, namespace: str | None, context: str | None) -> Iterator[Site]:
    """Helm and the cluster for a release; an interrupt ends the program with status 130."""
    from stoker.rollout.cluster_helm import Helm

    try:
        from stoker.rollout.cluster_api import Kubernetes
    except ModuleNotFoundError as error:
        raise OperatorError(f"deploys need the package {error.name}: pip install 'stoker-serve[kubernetes]'") from None
    if chart == CHART and not Path(chart).is_dir():
        raise ConfigError(f"there is no chart at {CHART} below this directory; name it with --chart or STOKER_CHART")
    kubernetes = Kubernetes(release, namespace, context)
    helm = Helm(release, chart, kubernetes.namespace, context)
    helm.check()
    try:
        yield Site(helm, kubernetes)
    except KeyboardInterrupt:
        typer.echo(
            f"interrupted: nothing is lost, and nobody watches now; `stoker deploy resume {release}` goes on, "
            f"`stoker deploy abort {release}` takes it back",
            err=True,
        )
        raise typer.Exit(INTERRUPTED) from None
    finally:
        kubernetes.close()


def _free(site: Site, *, take_over: bool) -> None:
    from stoker.cli.deploy_view import Lines
    from stoker.rollout.cluster_drive import free

    free(site.helm, Lines(), take_over=take_over)


def _drive(site: Site, release: str, *, wish: Wish | None = None, as_json: bool) -> None:
    """Drive the release's deploy to its end; StokerError when that is another one than was wished for."""
    from stoker.cli.deploy_view import Lines
    from stoker.rollout.cluster_drive import Driver

    argo = site.found().argo
    deploy = Driver(site.helm, site.cluster(argo=argo), Lines(), wish).run()
    if as_json:
        print_json(deploy.saved())
    wanted = {"abort": {"aborted", "rolled_back"}, "rollback": {"aborted", "rolled_back"}}.get(
        wish or "", {"succeeded"}
    )
    if deploy.step not in wanted:
        outcome = deploy.step.replace("_", " ")
        raise StokerError(f"deploy {deploy.id} {outcome}: {deploy.note}; {deploy.old} serves {release}")
    if not as_json:
        serving = deploy.new if deploy.step == "succeeded" else deploy.old
        typer.echo(f"{serving} serves {release}: {deploy.step.replace('_', ' ')} ({deploy.title})")


def _show_plan(site: Site, found: Found, deploy: Deploy, values: Values, *, as_json: bool) -> None:
    """What filling the idle slot and switching to it would change: values, then objects."""
    from stoker.cli.deploy_view import coloured
    from stoker.rollout.cluster_diff import manifest_diff, values_diff
    from stoker.rollout.cluster_values import switched

    then = switched(values, deploy.changed(step="baking"))
    old, new = ({**given, "deploy": {}} for given in (found.values, then))
    differences = values_diff(old, new)
    version = site.kubernetes.version()
    objects = manifest_diff(
        site.helm.rendered(old, version), site.helm.rendered({**new, "switchUnready": True}, version)
    )
    if as_json:
        print_json({"deploy": deploy.saved(), "values": differences, "objects": objects})
        return
    for line in coloured([*differences, *objects], colour=sys.stdout.isatty()):
        typer.echo(line)


def _set_text(path: Path | None) -> str | None:
    """The text of an evaluation set, checked, as YAML (which JSON is)."""
    if path is None:
        return None
    import yaml

    from stoker.evaluation.sets import load_set

    return yaml.safe_dump(
        load_set(path).model_dump(mode="json", exclude_unset=True), allow_unicode=True, sort_keys=False
    )
