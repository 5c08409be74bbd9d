"""Programs that the tests of a process share: what is lowered from the same things is traced and compiled once.

The engine of one test differs from the next one's in its policy, its loop or its tiers, and seldom in its programs; to
trace, lower and load those again takes most of the time of a short test. JAX's persistent cache saves the compiler's
part alone.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import jax

from jaxserve.runtime.programs.lowering import Lowering

OF_THE_MODEL = {"_model", "_config", "_attention", "_dtype", "params", "state", "table_width"}


class SharedProgram:
    """What `Lowering` returns, compiled once."""

    def __init__(self, lowered: jax.stages.Lowered) -> None:
        self._lowered, self._compiled = lowered, None

    def compile(self) -> Any:
        if self._compiled is None:
            self._compiled = self._lowered.compile()
        return self._compiled


class SharedLowering(Lowering):
    """Two of them share a program if all that they hold is equal: whatever a program could be lowered from.

    A sampler and a slot loader know nothing of the model but its vocabulary.
    """

    programs: ClassVar[dict[Any, SharedProgram]] = {}

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        held = dict(vars(self))
        self._whole = _key(held)
        rest = {name: value for name, value in held.items() if name not in OF_THE_MODEL}
        self._without_model = _key(rest | {"vocab_size": self._config.vocab_size})

    def _shared(self, held: Any, lower: Callable[..., jax.stages.Lowered], *given: Any) -> Any:
        key = held, lower.__name__, given
        if key not in self.programs:
            self.programs[key] = SharedProgram(lower(*given))
        return self.programs[key]

    def model_program(self, *given: Any) -> Any:
        return self._shared(self._whole, super().model_program, *given)

    def scorer(self, *given: Any) -> Any:
        return self._shared(self._whole, super().scorer, *given)

    def block_mover(self, *given: Any) -> Any:
        return self._shared(self._whole, super().block_mover, *given)

    def sampler(self, *given: Any) -> Any:
        return self._shared(self._without_model, super().sampler, *given)

    def slot_loader(self, *given: Any) -> Any:
        return self._shared(self._without_model, super().slot_loader, *given)


def _key(held: dict[str, Any]) -> Any:
    leaves, structure = jax.tree.flatten(held)
    return structure, tuple(leaves)
