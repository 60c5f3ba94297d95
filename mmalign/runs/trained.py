"""A run's policy as training left it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmalign.arguments.calls import sayable
from mmalign.arguments.places import found
from mmalign.config import build_part, external_code
from mmalign.distributed.team import joined
from mmalign.files import plain
from mmalign.runs import checkpoint, kept_policy
from mmalign.runs.folder import read_config
from mmalign.runs.rounds import last_run
from mmalign.types import Method, Policy, UserError


class Trained(NamedTuple):
    """A run's config, newest checkpoint, the state kept in it, its parameter sets' names, and the best of them: what users want."""

    folder: Path
    config: dict[str, Any]
    checkpoint: Path
    state: dict[str, Any]
    sets: tuple[str, ...]
    best: str
    tensors: dict[str, Any]

    def policy(self) -> Policy:
        """The policy of the config with the checkpoint's parameters."""
        policy: Policy = build_part(self.config, "policy")
        policy.sets.load({name: self.tensors[name] for name in self.sets})
        return policy

    def method(self) -> Method:
        """The method of the config. Errors: UserError where it does not say how to build it."""
        if not isinstance(self.config.get("method"), Mapping) or not sayable(self.config["method"]):
            raise UserError(f"{self.folder}: its config.yaml does not say how to build the method; takes a run of mm's own methods")
        method: Method = build_part(self.config, "method")
        return method


def trained(run_folder: str | Path, *, trust: bool = False, builds: Collection[str] | None = None) -> Trained:
    """Reads a run. ``best``: the best evaluated parameters where the run kept them, or else their moving average where it has one.

    trust: its config may name code outside of mmalign, which is imported and run where something of the config is built. builds: the keys
    of the config, and of its ``evaluation``, that the caller builds, and no others; None: any of them. What outside code those that are
    left alone name, such as a reward of the user's, is nobody's concern then.

    Of rounds it is the run that the last of their stages made; of an exported folder (``kept_policy``) the parameters that it holds, once
    their hash has been compared.

    Of several processes all read the same files. Errors: UserError where they do not, for a folder without a run, a run without a policy in
    its config, or without a checkpoint, and for outside code.
    """
    folder = Path(run_folder)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: no run there (no config.yaml); takes the folder of a run")
    if kept_policy.there(folder):
        kept, parameters = kept_policy.read(folder)
        config: dict[str, Any] = found(kept)
        refuse_external_code(_built(config, builds), str(folder), trust)
        return Trained(folder, config, folder / kept_policy.WEIGHTS, {}, ("trained",), "trained", {"trained": parameters})
    config = found(read_config(folder))
    if "stages" in config and "policy" not in config:
        refuse_external_code(_built(config, builds), str(folder), trust)
        if (last := last_run(folder)) is None:
            raise UserError(f"{folder}: no stage of its rounds has made a run yet; takes one with a checkpoint")
        return trained(last, trust=trust, builds=builds)
    refuse_external_code(_built(config, builds), str(folder), trust)
    if not isinstance(config.get("policy"), Mapping) or not sayable(config["policy"]):
        raise UserError(
            f"{folder}: its config.yaml does not say how to build the policy, which was made by other functions than mm's; "
            "takes a run of `mmalign train`, or of Python with mm.policies and mm.worlds, or models loaded by name"
        )
    newest = checkpoint.newest_sound(folder / "checkpoints")
    if newest is None:
        raise UserError(f"{folder}: no checkpoint there to sample from; takes a run that has saved one")
    team = joined()  # which may not see the same files
    team.agree(f"{folder}: config", plain(config))
    team.agree(f"{folder}: checkpoint", [newest.name, checkpoint.identity(newest)])
    tensors, state = checkpoint.load(newest)
    sets = checkpoint.parameter_sets(tensors)
    return Trained(folder, config, newest, state, sets, next(name for name in ("best", "ema", "trained") if name in sets), tensors)


def _built(config: Mapping[str, Any], builds: Collection[str] | None) -> Mapping[str, Any]:
    """What of a config, and of its evaluation, stands under these keys; all of it for None."""
    if builds is None:
        return config
    evaluation = config.get("evaluation")
    inside = {key: evaluation[key] for key in builds if key in evaluation} if isinstance(evaluation, Mapping) else {}
    return {**{key: config[key] for key in builds if key in config}, "evaluation": inside}


def refuse_external_code(config: Mapping[str, Any], where: str, trust: bool) -> None:
    """Errors: UserError for a config that names code outside of mmalign, unless it is trusted. Imports none of it."""
    if not trust and (names := external_code(config)):
        listed = ", ".join(map(str, names))
        raise UserError(
            f"{where}: its config names code outside of mmalign, which would be imported and run: {listed}; "
            "takes --trust (in Python: trust=True) where you know it"
        )
