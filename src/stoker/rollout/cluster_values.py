"""The values of a release for each step of a deploy. Pure: values in, values out; nothing given is changed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Final

from stoker.errors import ConfigError
from stoker.rollout.cluster import ARGO_SLOTS, Deploy, Slot, Stage, other

Values = dict[str, Any]
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_SOURCE: Final = re.compile(r"[a-z][a-z0-9+.-]*:")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be deployed; None leaves things as the serving slot has them.

    Attributes:
        image: `repository[:tag][@sha256:...]`.
        model: a source (`hf:...`, `https://...`, `s3://...`), a path of the file in the image or on a claim, or the
            reference of an image volume.
        sha256: that the fetched file must have.
        the_set: text of the evaluation set of the gate.
        gate: whether the new version must pass it.
        bake: seconds for which both slots are kept and compared.
        load_within: seconds in which the new slot must be ready.
    """

    image: str | None = None
    model: str | None = None
    sha256: str | None = None
    the_set: str | None = None
    gate: bool = True
    bake: float = 600.0
    load_within: float = 900.0

    @property
    def title(self) -> str:
        """What is new, for people."""
        return " ".join(part for part in (self.image, self.model) if part) or "the same image and model"


def image_of(reference: str) -> Values:
    """`repository`, `tag` and `digest` of an image's reference; ConfigError when it is none."""
    rest, at, digest = reference.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise ConfigError(f"--image {reference}: after the @ stands sha256: and 64 hexadecimal digits")
    last = rest.rpartition("/")[2]
    repository, tag = (rest.rpartition(":")[0], rest.rpartition(":")[2]) if ":" in last else (rest, "")
    if not repository or (":" in last and not tag) or not (tag or digest) or re.search(r"\s", reference):
        raise ConfigError(f"--image {reference}: must be REPOSITORY:TAG, REPOSITORY@sha256:... or both together")
    return {"repository": repository, "tag": tag, "digest": digest}


def model_of(model: str, sha256: str | None, common: Mapping[str, Any]) -> Values:
    """`slots.<slot>.model` for a model, by how models are delivered; ConfigError where the two do not go together."""
    delivery = common.get("delivery", "image")
    if sha256 is not None and not _SHA256.fullmatch(sha256.removeprefix("sha256:").lower()):
        raise ConfigError("--sha256: must be 64 hexadecimal digits")
    if delivery == "imageVolume":
        return {"imageVolume": {"reference": model}}
    if not _SOURCE.match(model):
        if delivery == "none":
            raise ConfigError(f"--model {model}: with model.delivery none, pods fetch it: name a source such as hf:...")
        if sha256 is not None:
            raise ConfigError("--sha256 is checked when a file is fetched, and a path is not; leave it out")
        return {"file": model, **({"source": ""} if delivery == "claim" else {})}
    if delivery == "image":
        raise ConfigError(
            f"--model {model}: model.delivery is image, so it is in the image: deploy another --image, or name the "
            "path of its file in there"
        )
    return {"source": model, **({"sha256": sha256} if sha256 else {})}


def filled(values: Values, full: Mapping[str, Any], order: Order, deploy: Deploy, serving: Slot) -> Values:
    """Values in which the idle slot runs what was ordered, beside the one that serves.

    Args:
        values: those that the user gave.
        full: those together with the chart's defaults.
        order: what is new.
        deploy: to be kept with them.
        serving: the slot that serves, for its size.
    """
    changed = deepcopy(values)
    own = full if deploy.argo else full["slots"][deploy.old]
    image, model = deepcopy(own.get("image") or {}), deepcopy(own.get("model") or {})
    if order.image is not None:
        image = {**image, **image_of(order.image)}
    if order.model is not None:
        common = {**full["model"], **model}
        model = {name: value for name, value in model.items() if name not in {"source", "sha256", "file"}}
        model |= model_of(order.model, order.sha256, common)
    elif order.sha256 is not None:
        raise ConfigError("--sha256 goes with --model")
    if deploy.argo:
        changed |= {"image": image, "model": model, "gate": {**changed.get("gate", {}), "enabled": deploy.gated}}
    else:
        size = _size(full, deploy.old, serving)
        _set_slot(changed, deploy.new, enabled=True, image=image, model=model, replicas=size)
    if order.the_set is not None:
        changed.setdefault("gate", {})["set"] = order.the_set
    return _with(changed, deploy)


def warmed(values: Values, full: Mapping[str, Any], deploy: Deploy, serving: Slot) -> Values:
    """Values in which the idle slot runs again what it has, as large as the one that serves."""
    changed = deepcopy(values)
    _set_slot(changed, deploy.new, enabled=True, replicas=_size(full, deploy.old, serving))
    return _with(changed, deploy)


def switched(values: Values, deploy: Deploy) -> Values:
    """Values in which the new slot serves; the chart asks its gate before, if the deploy wants it."""
    changed = deepcopy(values)
    if deploy.argo:
        return _with(changed, deploy)
    changed["active"] = deploy.new
    changed["gate"] = {**changed.get("gate", {}), "enabled": deploy.gated}
    return _with(changed, deploy)


def returned(values: Values, deploy: Deploy) -> Values:
    """Values in which the old slot serves again, without any gate."""
    changed = deepcopy(values)
    if deploy.argo:
        return _with(_as_before(changed, deploy), deploy)
    changed["active"] = deploy.old
    changed["gate"] = {**changed.get("gate", {}), "enabled": False}
    return _with(changed, deploy)


def finished(values: Values, deploy: Deploy) -> Values:
    """Values after a deploy: the slot that does not serve is off; the new one, if it is that, is as it was before."""
    changed = deepcopy(values)
    succeeded = deploy.step == "succeeded"
    if deploy.argo:
        changed = changed if succeeded else _as_before(changed, deploy)
        changed["gate"] = deepcopy(dict(deploy.gate_was or {}))
        return _with(changed, deploy)
    changed["active"] = deploy.new if succeeded else deploy.old
    changed["gate"] = deepcopy(dict(deploy.gate_was or {}))
    if succeeded:
        _set_slot(changed, deploy.old, enabled=False)
        if (changed.get("autoscaling") or {}).get("enabled", True):
            _set_slot(changed, deploy.new, replicas=None)  # what it has; a number would stand against the autoscaler
    else:
        was = deploy.was or {}
        _set_slot(
            changed, deploy.new, **{"image": {}, "model": {}, "replicas": None, **deepcopy(was), "enabled": False}
        )
    return _with(changed, deploy)


def remembered(full: Mapping[str, Any], slot: str) -> Values:
    """What a slot had, for `Deploy.was`."""
    if slot in ARGO_SLOTS:
        return {name: deepcopy(full[name]) for name in ("image", "model")}
    return {name: deepcopy(full["slots"][slot].get(name)) for name in ("image", "model", "replicas")}


def may_return(deploy: Deploy | None) -> bool:
    """Whether the slot that does not serve holds what served before."""
    return deploy is not None and (deploy.step == "succeeded" or deploy.back)


def ended(deploy: Deploy, outcome: Stage, why: str, now: float) -> Deploy:
    """A deploy that is over."""
    return deploy.changed(step=outcome, note=why, updated=now, bake_until=None)


def idle_of(full: Mapping[str, Any]) -> str:
    """The slot that does not serve."""
    return other(full["active"])


def _size(full: Mapping[str, Any], slot: str, serving: Slot) -> int | None:
    if full["autoscaling"]["enabled"]:
        return max(serving.wanted, 1)
    found: int | None = full["slots"][slot].get("replicas")
    return found


def _as_before(values: Values, deploy: Deploy) -> Values:
    """Argo's values with image and model of before."""
    return {**values, **deepcopy(dict(deploy.was or {}))}


def _set_slot(values: Values, slot: str, **changes: Any) -> None:
    slots = values.setdefault("slots", {})
    slots[slot] = {**(slots.get(slot) or {}), **changes}


def _with(values: Values, deploy: Deploy) -> Values:
    values["deploy"] = deploy.saved()
    return values
