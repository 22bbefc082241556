"""A stock-compatible MODEL without weights: a real ``comfy.model_base`` class whose network lives in the daemon.

The class keeps ComfyUI's ``extra_conds``, latent format and model sampling; only ``diffusion_model`` is a stand-in that turns each call
into an Evaluate. Whole loops never reach it: the SAMPLER_SAMPLE wrapper of :mod:`.trajectory` takes them before.
"""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NoReturn

import comfy.model_base
import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.utils
import torch

from ..backend.errors import BadCheckpoint
from ..backend.wire.messages import ModelRef
from . import host, refusals
from .branches import WRAPPER_KEY, calc_cond_batch
from .checkpoint import Checkpoint
from .evaluate import evaluate_network
from .families import Family, family_of, unsupported
from .loras import LastSets, Lora, from_patches, references
from .session import Session
from .tensors import compute_dtype
from .trajectory import sampler_sample

_SET_BY_TORCH = ("training",)


class Remote:
    """Where a MODEL's network lives and how it is asked. Shared by all clones of the MODEL; one with LoRAs has a Remote of its own."""

    def __init__(self, session: Session, family: Family, on: ModelRef, dtype: torch.dtype) -> None:
        self.session = session
        self.family = family
        self.on = on
        self.dtype = dtype
        """Compute dtype, as torch calls it."""
        self._offered: LastSets[Remote] = LastSets()
        """The network with each of the sets of LoRAs that were used last."""

    def of(self, patcher: Any, *, in_loop: bool = False) -> Remote:
        """The same network with the LoRAs of this MODEL, which the daemon is given if it does not have them.

        ``in_loop``: they were offered when the loop began; a call in it does not ask again.
        """
        wanted: tuple[Lora, ...] = getattr(patcher, "loras", ())
        if not wanted:
            return self
        offered = self._offered.get(wanted) if in_loop else None
        if offered is not None:
            return offered
        with self.session.guarded():
            client = self.session.ready_client()
            refs = references(wanted, lambda data: client.store(data, host.raise_if_interrupted))
        remote = Remote(self.session, self.family, replace(self.on, loras=refs), self.dtype)
        self._offered.put(wanted, remote)
        return remote


class RemoteNetwork(torch.nn.Module):
    """Stands where ComfyUI expects the network. Has no parameters, so that nothing is moved, counted or patched.

    It is sealed: whoever writes into a network, or reaches for its modules, means to change the picture.
    """

    stands_in = True
    """Tells :mod:`.refusals` that nobody has put another network into its place."""

    def __init__(
        self,
        remote: Remote,
        unet_config: dict[str, Any],
        model: Any,
        described: dict[str, torch.Tensor],
        parts: Mapping[str, Any],
    ) -> None:
        """`described`: the checkpoint's tensors on the meta device. `parts`: what else ComfyUI uses of a network."""
        super().__init__()
        self._described = described
        self._modules_elsewhere = frozenset(name.split(".")[0] for name in described)
        self.remote = remote
        self._model = weakref.ref(model)  # it owns this module
        self.dtype = remote.dtype
        self.patch_size = unet_config.get("patch_size", 2)
        for name in remote.family.shapes:
            # ComfyUI reads the number of input channels there: checkpoints with concatenated conditions take more than the latent has.
            module, leaf = name.split(".")
            setattr(self, module, SimpleNamespace(**{leaf: SimpleNamespace(shape=described[name].shape)}))
        for name, part in parts.items():
            setattr(self, name, part)
        self._sealed = True

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Not an AttributeError for a module that the checkpoint has: loaders of bypass LoRAs catch that and go on without the LoRA.
            if name in self.__dict__.get("_modules_elsewhere", ()):
                raise refusals.reaches_in(name) from None
            raise AttributeError(str(refusals.reaches_in(name))) from None

    def __setattr__(self, name: str, value: Any) -> None:
        if self.__dict__.get("_sealed") and name not in _SET_BY_TORCH and not name.startswith("comfy_"):
            raise refusals.inside_the_network(f"{name} of the network")
        super().__setattr__(name, value)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """The names and shapes of the checkpoint, on the meta device: LoRA loaders look up in them what they would change."""
        destination |= {prefix + name: tensor for name, tensor in self._described.items()}

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One call, through the wrappers that other nodes have put around the network, with the arguments in ComfyUI's order."""
        names = self.remote.family.arguments
        values = {**dict.fromkeys(names), **dict(zip(names, args, strict=False)), **kwargs}
        options = values["transformer_options"] = values.get("transformer_options") or {}
        wrappers = comfy.patcher_extension.get_all_wrappers(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, options)
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        positional = [values.pop(name) for name in names]
        answer: torch.Tensor = executor.execute(x, timestep, *positional, **values)
        return answer

    def _forward(self, x: torch.Tensor, timestep: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        patcher = getattr(self._model(), "current_patcher", None)
        if patcher is not None:
            refusals.check_patcher(patcher)
        values = dict(zip(self.remote.family.arguments, args, strict=False)) | kwargs
        in_loop = refusals.TRAJECTORY_KEY in (values.get("transformer_options") or {})
        return evaluate_network(self.remote.of(patcher, in_loop=in_loop), x, timestep, values)


class RemoteModel:
    """Mixed into the checkpoint's own ``comfy.model_base`` class."""

    def memory_required(self, *args: Any, **kwargs: Any) -> int:
        """Nothing: the user's VAE and text encoders are not put out for us."""
        return 0

    def process_latent_in(self, latent: torch.Tensor) -> torch.Tensor:
        """The latent as the model takes it; some formats know a mean per channel, which would fail here with torch's own words."""
        remote: Remote = self.diffusion_model.remote  # type: ignore[attr-defined]
        refusals.check_latent(remote.family, self.latent_format, latent, is_whole=False)  # type: ignore[attr-defined]
        answer: torch.Tensor = super().process_latent_in(latent)  # type: ignore[misc]
        return answer

    def state_dict_for_saving(self, *args: Any, **kwargs: Any) -> NoReturn:
        """There are no weights here to save."""
        raise refusals.no_weights_here()


class RemotePatcher(comfy.model_patcher.ModelPatcher):  # type: ignore[misc]
    """ComfyUI's plain ModelPatcher (never the dynamic one: there is nothing to page in) that refuses what needs weights."""

    loras: tuple[Lora, ...] = ()
    """In the order in which they are applied."""

    def clone(self, *args: Any, **kwargs: Any) -> RemotePatcher:
        """A MODEL of its own, with the same LoRAs."""
        copy: RemotePatcher = super().clone(*args, **kwargs)
        copy.loras = self.loras
        return copy

    def with_lora(self, lora: Lora) -> RemotePatcher:
        """A clone with one LoRA more."""
        copy = self.clone()
        copy.loras = (*self.loras, lora)
        copy.patches_uuid = uuid.uuid4()
        return copy

    def add_patches(
        self, patches: dict[Any, Any], strength_patch: float = 1.0, strength_model: float = 1.0
    ) -> list[Any]:
        """LoRA loaders end here; keys of other models (a text encoder's) are passed over, as ComfyUI does. Merges end here too."""
        if strength_model != 1.0:
            raise refusals.weight_patches()
        names = self.model.state_dict()
        ours = {key: patch for key, patch in patches.items() if (key[0] if isinstance(key, tuple) else key) in names}
        if ours and strength_patch != 0.0:
            self.loras = (*self.loras, from_patches(ours, float(strength_patch)))
            self.patches_uuid = uuid.uuid4()
        return list(ours)

    def add_object_patch(self, name: str, value: Any) -> None:
        """Objects outside the network may be replaced; a compiled network is left out, because there is nothing here to compile."""
        if name.split(".")[0] == "diffusion_model":
            if not refusals.is_compiled(value):
                raise refusals.inside_the_network(f"an object patch ({name})")
            self.set_attachments(refusals.SKIPPED_COMPILE, True)
            return
        if name == "manual_cast_dtype":
            raise refusals.compute_dtype()
        super().add_object_patch(name, value)

    def pre_run(self) -> None:
        """Before every sampling, also of a guider's second MODEL, whose own wrapper around the sampler never runs."""
        refusals.check_patcher(self)
        super().pre_run()

    def set_model_compute_dtype(self, dtype: torch.dtype) -> NoReturn:
        """Refused: the daemon has to know before it loads."""
        raise refusals.compute_dtype()

    def model_size(self) -> int:
        """What is really here, in bytes: the tables of the model sampling, not the tensors that `state_dict` only names."""
        size: int = comfy.model_management.module_size(self.model.model_sampling)
        return size

    def add_hook_patches(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Weight hooks (LoRA schedules)."""
        raise refusals.weight_hooks()

    def add_weight_wrapper(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Weight wrappers (bypass LoRAs)."""
        raise refusals.weight_patches()

    def get_key_patches(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Merges read the weights of their second model through this."""
        raise refusals.no_weights_here()

    def model_state_dict_for_saving(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Model saving on newer versions."""
        raise refusals.no_weights_here()

    def state_dict_for_saving(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Model saving."""
        raise refusals.no_weights_here()


def build(
    session: Session, checkpoint: Checkpoint, *, weight_dtype: torch.dtype | None, plan: str, daemon_device: str
) -> RemotePatcher:
    """The MODEL of a checkpoint that the daemon described.

    `weight_dtype` None takes the compute dtype that ComfyUI's own loader would take for the same file.

    Raises:
        UnsupportedFamily: we do not run this architecture.
        BadCheckpoint: ComfyUI's detection does not know the file.
    """
    config, state_dict, parameters = _detect(checkpoint)
    family = family_of(type(config))
    dtype = weight_dtype or _stock_dtype(config, state_dict, parameters, daemon_device)
    config.set_inference_dtype(dtype, None)
    on = ModelRef(model=checkpoint.model, family=family.name, dtype=compute_dtype(dtype), plan=plan)
    model = _weightless(config, state_dict, family)
    remote = Remote(session, family, on, dtype)
    model.diffusion_model = RemoteNetwork(
        remote, config.unet_config, model, _as_loaded(config, state_dict), _parts(config, state_dict, family)
    )
    patcher = RemotePatcher(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE, WRAPPER_KEY, sampler_sample)
    patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.CALC_COND_BATCH, WRAPPER_KEY, calc_cond_batch)
    return patcher


def _detect(checkpoint: Checkpoint) -> tuple[Any, dict[str, torch.Tensor], int]:
    """ComfyUI's own detection, on shapes alone: (model config, state dict in ComfyUI's names, number of parameters)."""
    state_dict: dict[str, torch.Tensor] = dict(checkpoint.tensors)
    prefix = comfy.model_detection.unet_prefix_from_state_dict(state_dict)
    state_dict = comfy.utils.state_dict_prefix_replace(state_dict, {prefix: ""}, filter_keys=True) or state_dict
    parameters = comfy.utils.calculate_parameters(state_dict)
    metadata = {key: str(value) for key, value in checkpoint.metadata.items()}
    config = comfy.model_detection.model_config_from_unet(state_dict, "", metadata=metadata)
    if config is None:
        converted = comfy.model_detection.convert_diffusers_mmdit(state_dict, "")
        if converted is not None:
            state_dict = converted
            config = comfy.model_detection.model_config_from_unet(state_dict, "")
    if config is None:
        raise BadCheckpoint("Choose a diffusion model file: ComfyUI does not recognise the architecture of this one.")
    return config, state_dict, parameters


def _as_loaded(config: Any, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors under the names that ComfyUI's own network would have after loading them: LoRA loaders know no others.

    Published files spell some differently, and a loader that finds nothing leaves the LoRA out with no more than a line in the log.
    """
    loaded: dict[str, torch.Tensor] = config.process_unet_state_dict(dict(state_dict))
    return loaded


def _weightless(config: Any, state_dict: dict[str, torch.Tensor], family: Family) -> Any:
    """ComfyUI's own model object for `config`, without a network, as a class that also knows how to be remote."""
    kept = config.unet_config
    config.unet_config = {**kept, "disable_unet_model_creation": True}
    try:
        model = config.get_model(state_dict, "")
    finally:
        config.unet_config = kept
    real = type(model)
    if real.__module__ != comfy.model_base.__name__ or real.__name__ not in family.model_classes:
        raise unsupported(real.__name__)
    model.__class__ = type(f"Remote{real.__name__}", (RemoteModel, real), {})
    return model


def _parts(config: Any, state_dict: dict[str, torch.Tensor], family: Family) -> dict[str, Any]:
    """The attributes of ComfyUI's own network that its model object uses and that hold no weights."""
    if not family.parts:
        return {}
    network = config.get_model(state_dict, "", device=torch.device("meta")).diffusion_model
    return {name: getattr(network, name) for name in family.parts}


def _stock_dtype(config: Any, state_dict: dict[str, torch.Tensor], parameters: int, daemon_device: str) -> torch.dtype:
    """The compute dtype that ComfyUI's UNETLoader would take on this machine.

    When ComfyUI itself has no GPU and the daemon has one, what ComfyUI would take on such a GPU: fp32 would be its choice only for want of one.
    """
    supported = list(config.supported_inference_dtypes)
    device = comfy.model_management.get_torch_device()
    if comfy.model_management.is_device_cpu(device) and daemon_device.startswith("cuda"):
        first: torch.dtype = supported[0]
        return first
    weights = comfy.model_management.unet_dtype(
        model_params=parameters, supported_dtypes=supported, weight_dtype=comfy.utils.weight_dtype(state_dict)
    )
    cast = comfy.model_management.unet_manual_cast(weights, device, supported)
    chosen: torch.dtype = weights if cast is None else cast
    return chosen
