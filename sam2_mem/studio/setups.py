"""What a run works with: network, distiller, memory policy and the bound on it; and the networks there are to choose from."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from sam2_mem.build_sam import bound_policy, build_sam2_video_predictor
from sam2_mem.checkpoint import OFFICIAL_MODELS, OTHER_MODELS
from sam2_mem.config import checkpoint_dir, compose_video, config_names
from sam2_mem.model.sam2 import SAM2
from sam2_mem.studio.policies import policy_from
from sam2_mem.tracking.session_log import SessionLog
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor

ARCHIVE_BYTES = 256 * 2**20
ARCHIVE_FRAMES = 4096
"""Both bound memory and masks that a run keeps of frames that the bank has let go, for corrections that come back to them."""
KEPT_NETWORKS = 3
NONE = "none"


@dataclass(frozen=True, kw_only=True)
class RunSetup:
    """One choice of all parts.

    Attributes:
        policy: name of the memory policy.
        fields: those of the policy that differ from the policy of that name.
        network: name in ``Networks``; "" for the one that the studio was started with.
        distiller: name of the token distiller.
        bound: name of the bound on memory.
        max_bytes: of the bound, None for its own default.
    """

    policy: str = "fifo"
    fields: Mapping[str, Any] = field(default_factory=dict)
    network: str = ""
    distiller: str = NONE
    bound: str = NONE
    max_bytes: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values for the page; ``label`` names what is not at its default."""
        extra = [part for part in (self.network, self.distiller, self.bound) if part not in ("", NONE)]
        label = " · ".join([self.policy + ("*" if self.fields else ""), *extra])
        rest_of_setup = {name: value for name, value in vars(self).items() if name not in ("policy", "fields")}
        return {"name": self.policy, "fields": dict(self.fields), **rest_of_setup, "label": label}


class Networks:
    """Predictors for setups. The network of the server is always there, of others the newest few are kept.

    Args:
        predictor: with the server's network.
        config: its name.
        checkpoint: its weights, None for those of the config.
        folder: the working folder, in which files of official weights are looked for.
        archive_bytes: the budget of a run for memory and masks of frames that the bank has let go; None for ``ARCHIVE_FRAMES``
            frames of an object, at most ``ARCHIVE_BYTES``.
    """

    def __init__(
        self,
        predictor: SAM2VideoPredictor,
        config: str,
        checkpoint: str | None,
        folder: Path,
        archive_bytes: int | None = None,
    ) -> None:
        self._started = (config, checkpoint)
        self._settings = predictor.tracker_settings
        self._archive_bytes = archive_bytes
        self.folder = folder
        self._base = self._kept_small(predictor)
        self._built: OrderedDict[tuple[str, str], SAM2VideoPredictor] = OrderedDict()

    def available(self) -> dict[str, tuple[str, str | None]]:
        """By name config and weights: the server's under "", those that come with the package, official files that lie in
        the working folder or in the folder of checkpoints."""
        embedded: dict[str, tuple[str, str | None]] = {name: (name, None) for name in _embedded()}
        files = {
            Path(model.config).stem: (model.config, str(path))
            for model in (*OFFICIAL_MODELS.values(), *OTHER_MODELS.values())
            for folder in (self.folder / "checkpoints", self.folder, checkpoint_dir())
            if (path := folder / model.filename).is_file()
        }
        listed = {name: network for name, network in (embedded | files).items() if network != self._started}
        return {"": self._started, **listed}

    def name_of(self, config: str, checkpoint: str | None) -> str | None:
        """The name of a network; None where it is not available."""
        matches = (name for name, network in self.available().items() if network == (config, checkpoint))
        return next(matches, None)

    def setup_of(self, log: SessionLog) -> RunSetup:
        """The setup of a saved session; ValueError where its network is not available."""
        network = self.name_of(log.config, log.checkpoint)
        if network is None:
            raise ValueError(
                f"expected a session of a network that is here ({', '.join(self._labels())}), got one of {log.config}: start "
                f"the studio with --config {log.config}" + (f" --checkpoint {log.checkpoint}" if log.checkpoint else "")
            )
        return RunSetup(
            policy=log.policy,
            fields=log.policy_fields,
            network=network,
            distiller=log.distiller,
            bound=log.memory_bound,
            max_bytes=log.max_bytes,
        )

    def logged(self, setup: RunSetup, log: SessionLog) -> SessionLog:
        """``log`` with the parts of ``setup``."""
        config, checkpoint = self.available()[setup.network]
        memory = {"distiller": setup.distiller, "memory_bound": setup.bound, "max_bytes": setup.max_bytes}
        policy = {"policy": setup.policy, "policy_fields": setup.fields}
        return replace(log, config=config, checkpoint=checkpoint, **memory, **policy)  # type: ignore[arg-type]

    def predictor(self, setup: RunSetup) -> tuple[SAM2VideoPredictor, RunSetup]:
        """The predictor of a setup, and the setup without fields that are at their default.

        Raises:
            ValueError: an unknown name, or parts that do not go together.
        """
        policy, changed = policy_from(setup.policy, setup.fields)
        if setup.bound != NONE:
            bytes_given = {} if setup.max_bytes is None else {"max_bytes": setup.max_bytes}
            policy = bound_policy(policy, setup.bound, **bytes_given)
        predictor = self._network(setup.network, setup.distiller).with_policy(policy)
        return predictor, replace(setup, fields=changed)

    def _network(self, name: str, distiller: str) -> SAM2VideoPredictor:
        if (name, distiller) == ("", NONE):
            return self._base
        if name not in self.available():
            raise ValueError(f"expected a network out of {', '.join(self._labels())}, got {name!r}")
        key = name, distiller
        if key not in self._built:
            config, checkpoint = self.available()[name]
            device, overrides = str(self._base.device), [f"distiller={distiller}"]
            built = build_sam2_video_predictor(config, checkpoint, device=device, hydra_overrides_extra=overrides)
            self._built[key] = self._kept_small(built)
            while len(self._built) > KEPT_NETWORKS:
                self._built.popitem(last=False)
        return self._built[key]

    def _labels(self) -> list[str]:
        return [name or config for name, (config, _) in self.available().items()]

    def _kept_small(self, predictor: SAM2VideoPredictor) -> SAM2VideoPredictor:
        """A predictor whose sessions keep no more than the budget."""
        bounded, budget = predictor.with_policy(predictor.policy), self._archive_bytes
        if budget is None:
            budget = min(ARCHIVE_BYTES, ARCHIVE_FRAMES * _frame_bytes(predictor.model))
        settings = self._settings
        bounded.tracker_settings = replace(settings, archive_bytes=min(budget, settings.archive_bytes))
        return bounded


def _frame_bytes(model: SAM2) -> int:
    """What the map and the mask of an object on a frame take in the archive."""
    height, width = model.mask_size
    return 2 * model.tokens_per_map * model.memory_width + 4 * height * width


@cache
def _embedded() -> tuple[str, ...]:
    """Configs of ours that bring weights of their own."""
    ours = [name for name in config_names() if len(Path(name).parts) == 2]
    return tuple(Path(name).stem for name in ours if compose_video(name).get("checkpoint") is not None)
