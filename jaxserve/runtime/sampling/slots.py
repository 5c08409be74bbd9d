"""What a sequence's slot must hold on the device before its first step, when the step's own arrays do not bring it.

Most sequences need nothing: their tokens come with their chunks and the sampler remembers what it samples. Penalties
and a processor of logits read the whole history, and `logit_bias` and `min_tokens` a list of tokens: those are loaded
on admission.
"""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxserve.core.plan import Admitted
from jaxserve.core.sampling import MAX_BANNED, MAX_LOGIT_BIAS

SlotRow = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32], NDArray[np.int32]]


class SlotLoader:
    """Says what to load, and remembers which slots still hold a former sequence's lists."""

    def __init__(self, context: int, vocab_size: int) -> None:
        self._context, self._vocab_size = context, vocab_size
        self._loaded: set[int] = set()

    def row(self, admitted: Admitted, *, history: bool = False) -> SlotRow | None:
        """(tokens [C], bias ids, bias values, banned ids) for `load_slot`, or None when the slot needs no loading.

        `history`: the sampler reads the tokens of every slot.
        """
        params, slot = admitted.params, admitted.slot
        if params.penalized or params.logit_bias or params.min_tokens:
            self._loaded.add(slot)
        elif slot in self._loaded:
            self._loaded.remove(slot)
        elif not history:
            return None
        tokens = np.zeros(self._context, np.int32)
        tokens[: len(admitted.tokens)] = admitted.tokens
        bias_ids = np.full(MAX_LOGIT_BIAS, self._vocab_size, np.int32)
        bias_values = np.zeros(MAX_LOGIT_BIAS, np.float32)
        bias_ids[: len(params.logit_bias)] = list(params.logit_bias)
        bias_values[: len(params.logit_bias)] = list(params.logit_bias.values())
        banned = np.full(MAX_BANNED, self._vocab_size, np.int32)
        if params.min_tokens:
            ends = sorted(admitted.stop_ids)  # at most MAX_BANNED: `Limits` refuses more
            banned[: len(ends)] = ends
        return tokens, bias_ids, bias_values, banned


def abstract_row(context: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    return (
        jax.ShapeDtypeStruct((context,), jnp.int32),
        jax.ShapeDtypeStruct((MAX_LOGIT_BIAS,), jnp.int32),
        jax.ShapeDtypeStruct((MAX_LOGIT_BIAS,), jnp.float32),
        jax.ShapeDtypeStruct((MAX_BANNED,), jnp.int32),
    )
