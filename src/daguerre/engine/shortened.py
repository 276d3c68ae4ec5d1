"""Owns clip_skip: CLIP's text encoders without their last layers."""

from typing import Any


def at_most(encoder: Any, skip: int) -> int:
    """How many of an encoder's last layers are left out, so that one stays."""
    return min(skip, int(encoder.config.num_hidden_layers) - 1)


class Shortened:
    """A CLIP text encoder whose last ``skip`` layers are left out, but for its first; asked as the encoder itself is.

    With the meaning that diffusers documents: 1 is the output of the layer before the last. ``last_hidden_state`` has
    gone through the encoder's final norm, the ``hidden_states`` have not; the pooled embedding is that of all layers.
    """

    def __init__(self, encoder: Any, skip: int) -> None:
        self._encoder = encoder
        self._skip = at_most(encoder, skip)

    @property
    def device(self) -> Any:
        """Where its weights are."""
        return self._encoder.device

    @property
    def dtype(self) -> Any:
        """Of its weights."""
        return self._encoder.dtype

    def __call__(self, *args: Any, **options: Any) -> Any:
        """What transformers' encoder answers, of fewer layers."""
        output = self._encoder(*args, **options | {"output_hidden_states": True})
        if self._skip:
            inner = getattr(self._encoder, "text_model", self._encoder)
            output.hidden_states = output.hidden_states[: -self._skip]
            output.last_hidden_state = inner.final_layer_norm(output.hidden_states[-1])
        return output
