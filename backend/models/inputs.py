"""What a family's network takes beside the latent, as data, and the check of a call against it: from shapes alone, before any collective.

Each check ends in a sentence that says what to connect instead. What a family does not list is refused by name, never dropped.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from ..errors import BadRequest, UnsupportedInput, WrongFamily
from .adapter import CallSpec, Option

_SIDES = {4: "height, width", 5: "frames, height, width"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One tensor of conditioning, ``[batch, ..., width]``; with one dimension, a number per picture."""

    name: str
    dims: int
    """Dimensions, the batch included."""
    advice: str = ""
    """What to do about one that does not fit, as the first words of a sentence: ``Use the text encoder that belongs to ...``."""
    width: int | None = None
    """Size of the last dimension; None takes any."""
    wider: bool = False
    """A wider one is cut, as ComfyUI does."""
    required: bool = False
    """Only conditioning that a user connects is: what ComfyUI fills in itself is optional."""
    channels: int | None = None
    """Size of dimension 1, where that is not tokens: of a latent. None takes any."""
    mask_of: str = ""
    """The input of which this masks tokens, ``[batch, tokens]``; it is listed before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """Latents of other pictures, ``ref_latents.0`` and on."""

    prefix: str
    dims: int
    channels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """An option that names one of several ways. It may have any value where nothing depends on it."""

    name: str
    values: tuple[Option, ...] = ()
    """Empty: any value, of an option that ComfyUI's network takes and does not read."""
    matters_with: str = ""
    """Prefix of the conditioning without which it says nothing; empty: it always matters."""
    called: str = ""
    """In messages: ``the reference method``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """An option that is a number above 0."""

    name: str
    called: str
    """In messages: ``the frame rate``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Everything that one checkpoint's network takes."""

    label: str
    """The family in messages: ``FLUX.1``."""
    dims: int
    """Dimensions of the latent: 4 for pictures, 5 for videos."""
    channels: int
    """Channels of the latent, concatenated conditions included."""
    tensors: tuple[Input, ...]
    answer_channels: int | None = None
    """Channels of the velocity; None: as many as :attr:`channels`."""
    references: References | None = None
    choices: tuple[Choice, ...] = ()
    largest_side: int | None = None
    """Most latent pixels along a side, where positions come from a table in the checkpoint; None: any."""
    sides_of: int = 1
    """Height and width are multiples of it, where ComfyUI takes no other; elsewhere what is missing to a whole patch is padded."""
    numbers: tuple[Number, ...] = ()
    numbers_per_frame: bool = False
    """Whether the timestep may be one number per frame, ``[batch, frames]``."""
    numbers_per_position: bool = False
    """Whether it may be one number per position of the latent, ``[batch, frames * height * width, 1]``."""

    def check(self, request: CallSpec) -> None:
        """Accept a call.

        Raises:
            WrongFamily: something belongs to another family.
            BadRequest: something is missing, too large or does not fit the batch.
            UnsupportedInput: the family has no such input or option.
        """
        self._check_latent(request.x_shape)
        self._check_timestep(request)
        for wanted in self.tensors:
            self._check_tensor(wanted, request)
        references = self._references(request.conditioning)
        self._check_unknown(request, references)
        for name in references:
            self._check_reference(name, request)
        for choice in self.choices:
            self._check_choice(choice, request)
        for number in self.numbers:
            self._check_number(number, request)

    def _check_latent(self, shape: tuple[int, ...]) -> None:
        kind = "an image" if self.dims == 4 else "a video"
        if len(shape) != self.dims or 0 in shape:
            raise WrongFamily(
                f"Use {kind} latent of {self.label}: got a latent of shape {list(shape)}, "
                f"{self.label} takes [batch, channels, {_SIDES[self.dims]}]."
            )
        if shape[1] != self.channels:
            raise WrongFamily(
                f"Use a latent (and concatenated conditions) that belong to this {self.label} checkpoint: got {shape[1]} channels, "
                f"this checkpoint takes {self.channels}."
            )
        if self.largest_side is not None and max(shape[-2:]) > self.largest_side:
            raise BadRequest(
                f"Use a smaller latent: got {shape[-2]}x{shape[-1]}, this {self.label} checkpoint has positions for "
                f"{self.largest_side}x{self.largest_side}."
            )
        if any(side % self.sides_of for side in shape[-2:]):
            raise BadRequest(
                f"Use a latent whose height and width are multiples of {self.sides_of}: got {shape[-2]}x{shape[-1]}, and "
                f"{self.label} takes whole patches only."
            )

    def _check_timestep(self, request: CallSpec) -> None:
        shape, batch, sizes = request.timestep_shape, request.x_shape[0], request.x_shape[2:]
        per_frame = self.numbers_per_frame and shape == (batch, sizes[0])
        per_position = self.numbers_per_position and shape == (batch, math.prod(sizes), 1)
        if shape != (batch,) and not per_frame and not per_position:
            raise BadRequest(
                f"Give one timestep per picture: got shape {list(shape)} for {self.label} and a batch of {batch}."
            )

    def _check_tensor(self, wanted: Input, request: CallSpec) -> None:
        shape = request.conditioning.get(wanted.name)
        if shape is None and not wanted.required:
            return
        if wanted.required and (shape is None or len(shape) != wanted.dims or 0 in shape):
            raise BadRequest(
                f"Connect a text conditioning: {self.label} needs {wanted.name} as {self._wanted(wanted)}, "
                f"got {shape and list(shape)}."
            )
        if shape is None:
            return
        if wanted.dims == 1 and (len(shape) != 1 or 0 in shape):
            raise BadRequest(f"Give {wanted.name} as one number per picture: got shape {list(shape)}.")
        if len(shape) != wanted.dims or 0 in shape or not self._fits(wanted, shape):
            raise WrongFamily(
                f"{wanted.advice}: got {wanted.name} of shape {list(shape)}, this {self.label} checkpoint takes {self._wanted(wanted)}."
            )
        if wanted.mask_of and shape[1] != request.conditioning.get(wanted.mask_of, shape)[1]:
            raise BadRequest(
                f"Give {wanted.name} for every token of {wanted.mask_of}: got {shape[1]}, "
                f"there are {request.conditioning[wanted.mask_of][1]}."
            )
        if shape[0] != request.x_shape[0]:
            raise BadRequest(
                f"Give {wanted.name} for every picture of the batch: got {shape[0]}, the batch has {request.x_shape[0]}."
            )

    @staticmethod
    def _fits(wanted: Input, shape: tuple[int, ...]) -> bool:
        fits = wanted.width is None or shape[-1] == wanted.width or (wanted.wider and shape[-1] > wanted.width)
        return fits and (wanted.channels is None or shape[1] == wanted.channels)

    @staticmethod
    def _wanted(wanted: Input) -> str:
        if wanted.mask_of:
            return f"[batch, tokens of {wanted.mask_of}]"
        if wanted.channels is not None:
            return f"[batch, {wanted.channels}, {_SIDES[wanted.dims]}]"
        between = {1: "", 2: "", 3: "tokens, "}.get(wanted.dims, "..., ")
        return f"[batch, {between}{'any width' if wanted.width is None else wanted.width}]"

    def _references(self, names: Collection[str]) -> list[str]:
        if self.references is None:
            return []
        prefix = self.references.prefix
        found = sorted(name for name in names if name.startswith(prefix))
        if found != sorted(f"{prefix}{number}" for number in range(len(found))):
            raise BadRequest(f"Number the reference images from 0 without gaps: got {', '.join(found)[:200]}.")
        return found

    def _check_reference(self, name: str, request: CallSpec) -> None:
        wanted, shape, batch = self.references, request.conditioning[name], request.x_shape[0]
        if (
            wanted is None
            or len(shape) != wanted.dims
            or 0 in shape
            or shape[0] not in (1, batch)
            or shape[1] != wanted.channels
        ):
            channels = 0 if wanted is None else wanted.channels
            raise WrongFamily(
                f"Encode the reference image with the VAE of {self.label}: {name} has shape {list(shape)}, "
                f"needed is [1 or {batch}, {channels}, {_SIDES[self.dims]}]."
            )

    def _check_unknown(self, request: CallSpec, references: list[str]) -> None:
        known = {wanted.name for wanted in self.tensors} | set(references)
        if unknown := sorted(set(request.conditioning) - known):
            raise UnsupportedInput(f"Disconnect what gives {', '.join(unknown)[:200]}: {self.label} has no such input.")
        options = {choice.name for choice in self.choices} | {number.name for number in self.numbers}
        if unknown := sorted(set(request.options) - options):
            raise UnsupportedInput(
                f"Disconnect what sets {', '.join(unknown)[:200]}: {self.label} has no such option here."
            )

    def _check_choice(self, choice: Choice, request: CallSpec) -> None:
        if choice.name not in request.options:
            return
        value = request.options[choice.name]
        matters = any(name.startswith(choice.matters_with) for name in request.conditioning)
        if matters and choice.values and value not in choice.values:
            *first, last = map(str, choice.values)
            listed = f"{', '.join(first)} or {last}" if first else last
            raise UnsupportedInput(
                f"Choose {choice.called or choice.name} {listed}: {str(value)[:40]!r} does not work with {self.label}."
            )

    @staticmethod
    def _check_number(number: Number, request: CallSpec) -> None:
        value = request.options.get(number.name, 1)
        if type(value) not in (int, float) or not 0 < float(value) < math.inf:
            raise BadRequest(f"Set {number.called} to a number above 0: got {str(value)[:40]!r}.")
